# SPDX-License-Identifier: Apache-2.0
"""Damage on the disk is found and told before the damaged version is needed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.bundles import flip_last_byte
from support.ota import Robot

from vla_ota_manager.states import UpdateState
from vla_ota_manager.store import scrub

S = UpdateState
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def test_damage_is_reported_before_the_version_is_needed_and_no_longer_after_the_repair(robot: Robot) -> None:
    robot.settings = {"scrub_period_s": 0.1}
    robot.begin()
    robot.install("1.1.0")
    robot.until(lambda: robot.engine.status().rollback_ready == 2)
    assert robot.engine.status().damaged == ()
    robot.stop()
    robot.boot_policy()  # it has 1.0.0 in memory no more
    robot.start()
    robot.until(lambda: robot.engine.status().rollback_ready == 1)
    flip_last_byte(robot.store_dir / "models/pick_place/1.0.0" / WEIGHTS)
    robot.until(lambda: robot.engine.status().damaged == ("1.0.0",))
    assert robot.engine.status().rollback_ready == 0 and WEIGHTS in robot.engine.damaged["1.0.0"]
    robot.until(lambda: any(event.error_code == "VERSION_DAMAGED" for event in robot.events))
    robot.go_round(5)  # several scrubs
    told = [event for event in robot.events if event.error_code == "VERSION_DAMAGED"]
    assert [event.version for event in told] == ["1.0.0"]
    robot.install("1.0.0", S.INSTALLED, update_id="again", activate=False)
    robot.until(lambda: robot.engine.status().damaged == ())
    assert robot.engine.status().rollback_ready == 1


def test_damage_that_is_there_at_the_start_is_reported(robot: Robot) -> None:
    robot.adopt("1.0.0")
    flip_last_byte(robot.store_dir / "models/pick_place/1.0.0" / CONFIG)
    (robot.store_dir / "models/pick_place/0.9.0").mkdir()
    robot.start()
    robot.until(lambda: robot.engine.status().damaged == ("1.0.0", "0.9.0"))


def test_a_trial_keeps_its_lease_while_the_store_is_scrubbed(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the disk takes to answer."""
    reads, answers, find_damage = threading.Event(), threading.Event(), scrub.find_damage

    def read_slowly(*arguments: Any, **named: Any) -> Any:
        reads.set()
        answers.wait(60.0)
        return find_damage(*arguments, **named)

    monkeypatch.setattr(scrub, "find_damage", read_slowly)
    robot.settings = {"scrub_period_s": 0.05, "min_trial_chunks": 10_000}
    robot.try_out()
    assert reads.wait(60.0)
    lease = robot.policy.look()["lease"]["until"]
    robot.until(lambda: robot.policy.look()["lease"]["until"] > lease + 1.0)
    assert robot.engine.status().state is S.TRIAL and not answers.is_set()
    answers.set()
