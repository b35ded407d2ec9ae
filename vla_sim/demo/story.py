# SPDX-License-Identifier: Apache-2.0
"""The chapters: what is done to the robot, and what must have come of it. Every wait ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vla_ota.msg import EpisodeOutcome, ModelEvent, ModelStatus, PolicyStatus, SwapReport

from vla_sim.checkpoint_server import Behaviour, CheckpointServer
from vla_sim.demo.expectations import (
    SHORT_PATH,
    Check,
    committed,
    ends_with,
    recovered,
    refused,
    resumed,
    undisturbed,
    undone_by_a_person,
    undone_by_itself,
)
from vla_sim.demo.journal import Journal, Killed, at_s
from vla_sim.demo.processes import DemoError, Processes
from vla_sim.demo.report import END_STATES, Evidence
from vla_sim.demo.ros.driver import DemoDriver

MODEL = "reach_block"
UPDATE_LIMIT_S = 90.0
"""Longest time for an update from its offer to its end."""
_CHANGE_LIMIT_S = 30.0
_RESPAWN_S = 1.0
_EPISODES_BEFORE = 2  # of a version before its worker is killed
_CUT_AT = 0.4  # share of the largest blob that is on the disk when the manager is killed


@dataclass(frozen=True)
class Published:
    """A version on the server. ``blobs``: path → size [bytes] of what only this version has."""

    manifest_path: str
    digest: str
    blobs: Mapping[str, int]


@dataclass
class Stage:
    """Everything a chapter works with. ``start_manager`` starts it (again) on the same store; ``look`` takes stock."""

    driver: DemoDriver
    journal: Journal
    server: CheckpointServer
    processes: Processes
    versions: Mapping[str, Published]
    start_manager: Callable[[], None]
    look: Callable[[], Evidence]

    def offer(self, version: str, *, urgent: bool = False) -> str:
        """Offer a version that is on the server."""
        published = self.versions[version]
        url = self.server.url(published.manifest_path)
        return self.driver.offer(MODEL, version, url, published.digest, urgent=urgent)

    def wait_end(self, update_id: str, version: str) -> None:
        """Wait until an update has ended, and until the reports of its swaps are there."""
        end = self.journal.wait(
            ModelEvent,
            lambda e: e.update_id == update_id and e.to_state in END_STATES,
            f"the end of the update to {version}",
            UPDATE_LIMIT_S,
        )
        if end.to_state == "ROLLED_BACK":
            self.wait_report(lambda report: report.from_version == version, f"the way back from {version}")
        elif end.to_state == "COMMITTED":
            self.wait_report(lambda report: report.to_version == version, f"the swap to {version}")
            self.wait_committed(version)

    def wait_committed(self, version: str, since_s: float = 0.0) -> None:
        """Wait until the manager's status names a version as committed."""
        what = f"{version} in the manager's status"
        self.journal.wait(ModelStatus, lambda s: s.committed_version == version, what, _CHANGE_LIMIT_S, since_s=since_s)

    def wait_success(self, version: str, what: str, since_s: float) -> float:
        """Wait until an episode of a version succeeds after ``since_s``; return when it did, a moment later."""
        outcome = self.journal.wait(
            EpisodeOutcome, lambda o: o.success and o.version == version, what, _CHANGE_LIMIT_S, since_s=since_s
        )
        return at_s(outcome) + 1e-3

    def wait_report(self, accept: Callable[[SwapReport], bool], what: str, since_s: float = 0.0) -> None:
        """Wait for the SwapReport of a swap."""
        self.journal.wait(SwapReport, accept, f"a SwapReport of {what}", _CHANGE_LIMIT_S, since_s=since_s)


@dataclass(frozen=True)
class Chapter:
    """A part of the story: what is done, and what must have come of it."""

    title: str
    act: Callable[[Stage], None]
    expect: Check


def update_to(version: str, *, urgent: bool = False) -> Callable[[Stage], None]:
    """Offer a version and wait until its update has ended, however it does. ``urgent``: without a shadow."""

    def act(stage: Stage) -> None:
        stage.wait_end(stage.offer(version, urgent=urgent), version)

    return act


def update_and_undo(version: str, back_to: str) -> Callable[[Stage], None]:
    """Update, then let an operator go back."""

    def act(stage: Stage) -> None:
        stage.wait_end(stage.offer(version), version)
        asked = stage.driver.roll_back()
        if asked.reply.success:
            stage.wait_report(lambda report: report.to_version == back_to, f"the way back to {back_to}", asked.at_s)
            stage.wait_committed(back_to, asked.at_s)

    return act


def update_with_kill(version: str) -> Callable[[Stage], None]:
    """Kill the manager in the middle of a download and start it again.

    The server falls silent in that download: so nothing is in flight when the manager is killed, and the server's counter says to
    the byte whether anything is fetched twice.
    """

    def act(stage: Stage) -> None:
        path, size = max(stage.versions[version].blobs.items(), key=lambda item: item[1])
        half = Behaviour(rate_bytes_s=stage.server.usual.rate_bytes_s, stall_after=int(size * _CUT_AT))
        stage.server.behave(path, half, times=1)
        update_id = stage.offer(version)

        def has_what_was_sent(status: ModelStatus) -> bool:
            sent = stage.server.served
            if status.update_id != update_id or sent[path] < int(size * _CUT_AT):
                return False
            return bool(status.bytes_done == sum(sent[blob] for blob in stage.versions[version].blobs))

        stage.journal.wait(ModelStatus, has_what_was_sent, f"the first part of {path}", _CHANGE_LIMIT_S)
        stage.processes.kill("ota_manager")
        stage.journal.add(Killed(time.time(), "ota_manager"))
        time.sleep(_RESPAWN_S)
        stage.start_manager()
        stage.wait_end(update_id, version)

    return act


def kill_worker(version: str) -> Callable[[Stage], None]:
    """Let the arm work for a while, kill the process that computes its actions, and wait until an episode has succeeded again."""

    def act(stage: Stage) -> None:
        begun_s = time.time()
        for _ in range(_EPISODES_BEFORE):
            begun_s = stage.wait_success(version, "an episode that succeeds", begun_s)
        pid = stage.driver.worker_pid()
        if b"vla_policy_node.worker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            raise DemoError(f"process {pid} is not a worker of policy_node")
        killed_s = time.time()
        stage.journal.add(Killed(killed_s, "worker"))
        os.kill(pid, signal.SIGKILL)

        def state(wanted: int, what: str, since_s: float) -> float:
            found = stage.journal.wait(
                PolicyStatus, lambda s: s.state == wanted, what, _CHANGE_LIMIT_S, since_s=since_s
            )
            return at_s(found)

        held_s = state(PolicyStatus.STATE_HOLDING, "a hold after the loss of the worker", killed_s)
        back_s = state(PolicyStatus.STATE_RUNNING, "the end of the hold", held_s)
        stage.wait_report(lambda report: report.to_version == version, "the recovery", killed_s)
        stage.wait_success(version, "an episode that succeeds after the recovery", back_s)

    return act


CHAPTERS = (
    Chapter("A robot without a policy gets its first one: 1.0.0", update_to("1.0.0"), committed("1.0.0", "")),
    Chapter("An update in motion: 1.1.0", update_to("1.1.0"), committed("1.1.0", "1.0.0")),
    Chapter("A corrupted version is offered: 1.1.1", update_to("1.1.1"), refused("1.1.1", "1.1.0")),
    Chapter(
        "A sound file with another robot's zero positions: 1.1.6; its shadow gives it away",
        update_to("1.1.6"),
        refused("1.1.6", "1.1.0", ("SHADOW_DIVERGED", "SHADOW_LIMIT")),
    ),
    Chapter(
        "A version that behaves badly, urgent and so without a shadow: 1.2.0; the robot goes back by itself",
        update_to("1.2.0", urgent=True),
        undone_by_itself("1.2.0", "1.1.0"),
    ),
    Chapter(
        "A good version that an operator does not want: 1.3.0",
        update_and_undo("1.3.0", "1.1.0"),
        lambda evidence: [*committed("1.3.0", "1.1.0")(evidence), *undone_by_a_person("1.3.0", "1.1.0")(evidence)],
    ),
    Chapter(
        "The manager is killed in the middle of a download: 1.4.0",
        update_with_kill("1.4.0"),
        lambda evidence: [*committed("1.4.0", "1.1.0", SHORT_PATH)(evidence), *resumed("1.4.0")(evidence)],
    ),
    Chapter("The process that computes the actions is killed", kill_worker("1.4.0"), recovered("1.4.0")),
    Chapter(
        "Looking back",
        lambda stage: None,
        lambda evidence: [*undisturbed(evidence), *ends_with("1.4.0")(evidence)],
    ),
)
VERSIONS = ("1.0.0", "1.1.0", "1.1.1", "1.1.6", "1.2.0", "1.3.0", "1.4.0")
"""What the chapters offer; the first is the base of the others."""
