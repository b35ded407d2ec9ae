# SPDX-License-Identifier: Apache-2.0
"""A robot learns from its own episodes: real episodes, a real training process, the real manager."""

from __future__ import annotations

from support.adaptive_robot import AdaptiveRobot

from vla_checkpoint import verify_bundle


def test_an_idle_robot_trains_an_adapter_that_goes_on_trial_and_is_committed(robot: AdaptiveRobot) -> None:
    robot.record()
    robot.start()
    status = robot.until_standing("COMMITTED")
    assert robot.committed() == status.adapter_version
    assert status.adapter_version.startswith("1.0.1-adapted.x") and status.base_version == "1.0.0"
    assert (status.episodes_used, status.corrections_used) == (20, 10), "a third is held out"
    assert "pass: old recorded episodes" in status.validation and "pass: new recorded episodes" in status.validation
    bundle = verify_bundle(robot.robot.store_dir / "current")
    assert bundle.manifest.kind == "adapter" and bundle.has_golden
    assert bundle.manifest.lineage["training"]["examples"] == 20 * 14
    assert len(robot.offers) == 1
