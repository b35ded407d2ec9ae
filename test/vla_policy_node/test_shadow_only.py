"""A shadow-only node needs no permission, commands nothing, and says what it would have done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.engine_rig import EngineRig
from support.scripted import scripted_bundle

SLOW = {"horizon": 16, "amplitude": 0.0, "frequency_hz": 0.1}


def test_it_commands_nothing_and_shows_every_chunk_while_motion_is_forbidden(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0", offset=(0.3, 0.1), **SLOW)
    contract = {"motion_required": True, "auto_resume": False}  # a robot that nothing may move
    folder = str(tmp_path / "a")
    with EngineRig(tmp_path, model_path=folder, shadow_only=True, contract=contract, resumed=False) as rig:
        rig.wait_running("1.0.0")
        rig.wait_for(lambda: len(rig.shadow_actions) >= 5, "five chunks")
        first = rig.shadow_actions[0]
        assert (first.version, first.execute, first.actions.shape) == ("1.0.0", 8, (16, 2))
        assert np.allclose(first.actions, [0.3, 0.1], atol=1e-6)
        assert not rig.record.exists()  # where a policy that acts would have commanded
        assert rig.snapshot.shadow_only


def test_it_says_how_far_the_policy_is_from_what_the_robot_did(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0", offset=(0.3, 0.1), **SLOW)
    rig = EngineRig(tmp_path, model_path=str(tmp_path / "a"), shadow_only=True)
    rig.driven = (0.0, 0.05)
    follower = rig.engine.follower
    assert follower is not None
    with rig:
        rig.wait_for(lambda: follower.difference()[0] >= 3, "three compared chunks")
        assert np.allclose(follower.difference()[1], [0.3, 0.05], atol=1e-6)
