# SPDX-License-Identifier: Apache-2.0
"""An adapter is installed where its base is, and its base stays as long as it does."""

from __future__ import annotations

from support.ota import Robot

from vla_checkpoint.manifest import BaseRef
from vla_ota_manager.states import UpdateState


def test_an_adapter_is_installed_beside_its_base_which_then_stays(robot: Robot) -> None:
    robot.settings = {"keep_versions": 1}
    base = robot.adopt("1.0.0")
    robot.publish("1.0.1", base=BaseRef(base.name, base.version, base.digest))
    for version in ("1.1.0", "1.2.0"):
        robot.publish(version)
    engine = robot.start()
    robot.install("1.0.1", UpdateState.INSTALLED, activate=False)
    engine.pin("1.0.1")
    for version in ("1.1.0", "1.2.0"):  # the base is neither committed nor the one before any more
        robot.install(version)
    assert {"1.0.0", "1.0.1"} <= {*engine.status().versions}
    engine.pin("1.0.1", unpin=True)
    robot.publish("1.3.0")
    robot.install("1.3.0")
    assert {"1.0.0", "1.0.1"}.isdisjoint(engine.status().versions)


def test_an_adapter_without_its_base_is_refused_and_the_text_names_it(robot: Robot) -> None:
    robot.adopt("1.0.0")
    robot.publish("1.0.1", base=BaseRef("pick_place", "0.9.0", "a" * 64))
    robot.start()
    outcome = robot.install("1.0.1", UpdateState.REJECTED)
    assert outcome.error_code == "BASE_MISSING" and "pick_place 0.9.0" in outcome.message
