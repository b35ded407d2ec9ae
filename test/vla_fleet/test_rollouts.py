# SPDX-License-Identifier: Apache-2.0
"""Whole rollouts, over a real server with simulated robots on real lines; days pass in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.rollouts import HOUR_S, MODEL, NEW, OLD, RolloutFleet

from vla_evidence.log.replay import replay_file


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RolloutFleet]:
    with RolloutFleet(tmp_path) as fleet:
        yield fleet


def stage(name: str, share: float, hours: float = 24.0, margin: float | None = 0.2) -> dict[str, object]:
    return {"name": name, "share": share, "duration_s": hours * HOUR_S, "margin": margin}


STAGES = [stage("canary", 0.3), stage("wide", 0.5), {"name": "full", "share": 1.0}]


def replayed(fleet: RolloutFleet, rollout: str) -> int:
    """Check every verdict of a rollout's log, and return how many there are."""
    path = fleet.folder / "log.jsonl"
    path.write_bytes(fleet.client.rollout_log(rollout))
    return replay_file(path).verdicts


def test_a_good_version_reaches_every_robot_stage_by_stage(fleet: RolloutFleet) -> None:
    robots = fleet.fleet(3, new=0.95)
    rollout = fleet.client.create_rollout(MODEL, stages=STAGES)
    assert (rollout["state"], rollout["unit"]) == ("INSTALLING", "episode")
    fleet.until(rollout["id"], "JUDGING")
    assert all(robot.lineage == [OLD] and NEW in robot.on_disk for robot in robots), "drawn for episodes, not committed"
    end = fleet.until(rollout["id"], "DONE", "ROLLED_BACK", "ASKING", hours=4, episodes=30)
    assert end["state"] == "DONE", end
    assert all(robot.lineage == [OLD, NEW] and robot.active == NEW for robot in robots)
    assert [line["action"] for line in end["history"]] == [
        "rollout.create", "rollout.judging", "rollout.installing", "rollout.judging", "rollout.installing", "rollout.done",
    ]  # fmt: skip
    assert replayed(fleet, rollout["id"]) > 5


def test_a_worse_version_is_rolled_back_everywhere(fleet: RolloutFleet) -> None:
    robots = fleet.fleet(3, new=0.2)
    rollout = fleet.client.create_rollout(MODEL, stages=STAGES)["id"]
    end = fleet.until(rollout, "DONE", "ROLLED_BACK", "ASKING", hours=1, episodes=10)
    assert end["state"] == "ROLLED_BACK" and end["verdict"]["code"] == "SUCCESS_WORSE"
    for robot in robots:
        assert robot.active == OLD and not robot.blocked
        assert all(outcome.version == OLD for outcome in robot.episodes(20)), "nothing is drawn any more"
    assert replayed(fleet, rollout) > 0
