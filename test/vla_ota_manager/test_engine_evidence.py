# SPDX-License-Identifier: Apache-2.0
"""What counts in a trial is what this generation did in this boot, in episodes that policy_node opened; whatever the clock."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from support.ota import Robot

from vla_ota_manager.port import PolicySnapshot
from vla_ota_manager.records import EpisodeResult, Score
from vla_ota_manager.states import UpdateState
from vla_ota_manager.trial import inbox
from vla_ota_manager.trial.inbox import Inbox

S = UpdateState
HOUR = 3600.0


@pytest.fixture
def on_trial(robot: Robot) -> Robot:
    """1.0.0 is committed, 1.1.0 is on trial and must succeed in nine of ten episodes."""
    robot.settings = {"min_trial_chunks": 1000, "min_trial_episodes": 1000, "min_success_rate": 0.9}
    robot.try_out()
    robot.until(lambda: "chunks" in robot.engine.status().trial_message)
    return robot


def ends(robot: Robot, code: str) -> None:
    robot.ended("u-1.1.0", S.ROLLED_BACK, code)
    assert robot.engine.status().blocked == ("1.1.0",)


def episodes(robot: Robot, count: int) -> None:
    robot.until(lambda: f"{count}/1000 episodes" in robot.engine.status().trial_message)


def test_a_hard_limit_counts_though_the_clock_was_set_back(on_trial: Robot) -> None:
    on_trial.score(1.0, "hard_limit", stamp_s=time.time() - HOUR)
    ends(on_trial, "HARD_LIMIT")


def test_failed_episodes_count_though_the_clock_was_set_back(on_trial: Robot) -> None:
    for _ in range(10):
        on_trial.episode(False, stamp_s=time.time() - HOUR)
    ends(on_trial, "SUCCESS_WORSE")


def test_a_lost_worker_is_noticed_though_the_clock_was_set_back(on_trial: Robot) -> None:
    on_trial.say(stamp_s=time.time() - HOUR)
    on_trial.policy.lose_worker()
    ends(on_trial, "WORKER_LOST")


def test_an_outcome_of_an_episode_that_nobody_opened_counts_for_nobody(on_trial: Robot) -> None:
    no_generation = {"generation": 0}
    for spoofed in ({}, no_generation, {**no_generation, "version": ""}, {**no_generation, "episode_id": ""}):
        for _ in range(20):
            on_trial.outcome(False, **spoofed)
    on_trial.until(lambda: on_trial.engine.evidence_dropped[0] == 80)
    assert "opened no episode" in on_trial.engine.evidence_dropped[1]
    on_trial.episode(True)
    episodes(on_trial, 1)
    assert on_trial.engine.status().state is S.TRIAL


def test_an_outcome_of_another_generation_counts_for_nobody(on_trial: Robot) -> None:
    for generation in (0, 1):  # none, the one before
        for _ in range(50):
            on_trial.episode(False, generation=generation)
    on_trial.episode(True)
    episodes(on_trial, 1)
    assert on_trial.engine.status().state is S.TRIAL


def test_an_outcome_counts_once(on_trial: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "_STATUS_S", 60.0)
    on_trial.episode(True, episode_id="again")
    for name in ("again", ""):
        on_trial.say(episode=name)
        on_trial.engine.on_policy_status()
    episodes(on_trial, 1)
    monkeypatch.setattr(inbox, "_STATUS_S", 0.1)
    for _ in range(5):
        on_trial.outcome(True, episode_id="again")
    on_trial.until(lambda: on_trial.engine.evidence_dropped[0] == 5)
    episodes(on_trial, 1)


# -- the inbox alone ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outcome waits for the status of its episode as long as a test takes."""
    monkeypatch.setattr(inbox, "_STATUS_S", 600.0)


class Policy:
    """Says what its status is."""

    def __init__(self) -> None:
        self.snapshot = PolicySnapshot(0.0, "boot-1", 3, "d")
        self.inbox = Inbox(lambda: self.snapshot)

    def say(self, **fields: object) -> None:
        self.snapshot = replace(self.snapshot, **fields)
        self.inbox.look()


def result(episode_id: str) -> EpisodeResult:
    return EpisodeResult(episode_id, True, 0.0, "1.0.0", 3)


@pytest.mark.usefixtures("patient")
def test_an_outcome_that_arrives_before_the_status_of_its_episode_waits_for_it() -> None:
    policy = Policy()
    policy.inbox.put(result("a"))
    assert policy.inbox.drain() == []
    policy.say(episode_id="a")
    policy.say(episode_id="")
    assert [item.episode_id for item in policy.inbox.drain()] == ["a"]
    assert len(policy.inbox) == 0 and policy.inbox.dropped == 0


def test_an_episode_that_is_named_again_by_its_owner_counts_again() -> None:
    policy = Policy()
    for _ in range(3):
        policy.say(episode_id="pick")
        policy.say(episode_id="")
        policy.inbox.put(result("pick"))
    policy.inbox.put(result("pick"))
    assert len(policy.inbox.drain()) == 3


@pytest.mark.usefixtures("patient")
def test_what_an_earlier_boot_left_is_known_as_that() -> None:
    policy = Policy()
    policy.say(episode_id="a")
    policy.inbox.put(Score("tce", 1.0, 0.0, "1.0.0", 3))
    policy.say(boot_id="boot-2", episode_id="")
    policy.inbox.put(result("a"))
    policy.inbox.put(Score("tce", 1.0, 0.0, "1.0.0", 3))
    assert [item.boot_id for item in policy.inbox.drain()] == ["boot-1", "boot-2"]
    assert len(policy.inbox) == 1  # the outcome: this boot opened no such episode
