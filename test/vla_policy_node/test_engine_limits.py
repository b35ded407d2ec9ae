# SPDX-License-Identifier: Apache-2.0
"""A bundle may tighten the robot's limits, never widen them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engine_rig import EngineRig
from support.refusals import refused
from support.scripted import scripted_bundle

from vla_policy_node.generations.swapping import SwapRequest


def test_commands_of_a_bundle_stay_inside_its_own_tighter_limits(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "free", "1.0.0", amplitude=0.3, frequency_hz=0.5)
    tight = {"j1": {"low": -0.1, "high": 0.1, "tolerance": 0.1}, "j2": {"rate": 0.2}}
    scripted_bundle(tmp_path / "tight", "1.1.0", amplitude=0.15, frequency_hz=0.5, action_limits=tight)
    with EngineRig(tmp_path, model_path=str(tmp_path / "free")) as rig:
        rig.wait_running("1.0.0")
        rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "tight")))
        rig.wait_running("1.1.0")
        rig.wait_for(lambda: abs(rig.control.command[0]) <= 0.1, "a command inside the tighter limits")
        first = len(rig.commands()[1])
        rig.wait_for(lambda: len(rig.commands()[1]) > first + 100, "two seconds of commands")
        commands = rig.commands()[1][first:]
    assert np.abs(commands[:, 0]).max() == pytest.approx(0.1), "the bundle's position limit clamps"
    assert np.abs(np.diff(commands[:, 1])).max() <= 0.2 / 50 + 1e-9, "the bundle's rate limit slews"


@pytest.mark.parametrize(
    "wanted",
    [
        {"j1": {"low": 1.0, "high": 0.5}},
        {"j1": {"low": 5.0}},
        {"j1": {"rate": -1.0}},
        {"j1": {"speed": 1.0}},
        {"j1": {"low": "near"}},
        {"elbow": {"low": 0.0}},
        {"j1": 3},
        [1, 2],
    ],
)
def test_limits_that_leave_nothing_or_mean_nothing_refuse_the_bundle(
    tmp_path: Path, wanted: Any, rig: EngineRig
) -> None:
    scripted_bundle(tmp_path / "b", "1.1.0", action_limits=wanted)
    with refused("LIMITS_INVALID"):
        rig.engine.generations.prepare(tmp_path / "b")
    rig.wait_running("1.0.0")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One robot for bundles that are refused before anything is loaded."""
    folder = tmp_path_factory.getbasetemp()
    scripted_bundle(folder / "limits_a", "1.0.0")
    with EngineRig(folder, model_path=str(folder / "limits_a")) as running:
        running.wait_running("1.0.0")
        yield running
