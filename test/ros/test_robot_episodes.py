# SPDX-License-Identifier: Apache-2.0
"""Real ota_manager and policy_node: every episode of the version on trial counts once, and nothing that others say about it."""

from __future__ import annotations

import math
import threading
import time
import uuid
from pathlib import Path

from support.robot_rig import RobotRig
from support.waits import wait_for
from vla_ota.msg import EpisodeOutcome
from vla_ota.srv import EndEpisode, StartEpisode

OPEN = {"min_trial_episodes": 1000, "min_success_rate": 0.9, "score_sources": ["none"]}
"""A trial that stays open, and ends as soon as a few failures count."""


def spoof(rig: RobotRig, generation: int, version: str, stop: threading.Event) -> None:
    """Publish failures of episodes that were never opened, until told to stop."""
    publisher = rig.ros.advertise(EpisodeOutcome, "episode_outcome")
    while not stop.wait(0.1):
        for known in ({"generation": generation, "version": version}, {}):
            publisher.publish(EpisodeOutcome(episode_id=uuid.uuid4().hex, known=True, duration_s=math.nan, **known))


def test_each_episode_of_the_new_generation_counts_once_however_short_and_no_other_one(
    ros_domain: int, tmp_path: Path
) -> None:
    """Episodes of milliseconds one after the other, over the swap: those of the old generation fail, those of the new succeed."""
    with RobotRig(ros_domain, tmp_path) as rig:
        rig.start_policy()
        rig.start_manager()
        rig.install("1.0.0")
        rig.start_manager(**OPEN)
        rig.wait_status(lambda m: m.active_version == "1.0.0", "the manager hearing the policy node")
        rig.publish("1.1.0")
        update_id = rig.offer("1.1.0")
        stop, spoofer, succeeded = threading.Event(), None, 0
        pause_s = 0.3  # until it is swapped in: each episode begins with a chunk of its own, and a boundary needs one

        def episode() -> None:
            nonlocal spoofer, succeeded
            time.sleep(0.0 if spoofer else pause_s)
            opened = rig.ros.call(StartEpisode, "policy_node/start_episode", StartEpisode.Request(episode_id="same"))
            new = opened.version == "1.1.0"
            closed = rig.ros.call(EndEpisode, "policy_node/end_episode", EndEpisode.Request(success=new))
            assert opened.success and closed.success
            succeeded += new and closed.outcome.known and not closed.outcome.mixed
            if new and spoofer is None:
                spoofer = threading.Thread(target=spoof, args=(rig, opened.generation, "1.1.0", stop))
                spoofer.start()

        def enough() -> bool:
            episode()
            return succeeded >= 60

        try:
            wait_for(enough, "sixty episodes of 1.1.0")
            status = rig.wait_status(lambda m: f"{succeeded}/1000 episodes" in m.trial_message, f"{succeeded} episodes")
        finally:
            stop.set()
            if spoofer is not None:
                spoofer.join()
        assert status.state_name == "TRIAL" and status.update_id == update_id and not status.blocked
        told = rig.diagnostics.wait(
            lambda m: any("SCORE_INVALID" in s.message for s in m.status), what="the spoofed ones"
        )
        assert any("opened no episode" in s.message for s in told.status)
