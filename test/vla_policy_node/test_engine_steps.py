# SPDX-License-Identifier: Apache-2.0
"""What an engine hands on of an episode: every step of it, who commanded it, and what the policy wanted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.engine_rig import EngineRig
from support.scripted import scripted_bundle
from support.waits import wait_for

PERIOD_NS = 20_000_000


def test_an_episodes_steps_are_handed_on_whole_with_what_was_seen_wanted_and_commanded(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "1.0.0", amplitude=0.05)  # nothing that a limit would shorten
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        rig.wait_running("1.0.0")
        rig.engine.start_episode("first", "reach", 0.0)
        wait_for(lambda: sum(len(s.times_ns) for _, s in rig.steps) >= 50, "a second of steps")
        rig.engine.end_episode("", success=True)
        handed_on = len(rig.steps)
        published_ns, published = rig.commands()
        rig.engine.start_episode("second", "reach", 0.0)
        wait_for(lambda: len(rig.steps) > handed_on + 2, "steps of the second")
    assert {episode for episode, _ in rig.steps[:handed_on]} == {"first"}
    assert {episode for episode, _ in rig.steps[handed_on:]} == {"second"}
    first = [steps for _, steps in rig.steps[:handed_on]]
    times_ns = np.concatenate([s.times_ns for s in first])
    actions = np.concatenate([s.actions for s in first])
    assert (np.diff(times_ns) > 0).all() and {s.generation for s in first} == {1}
    begin, end = np.searchsorted(published_ns, [times_ns[0] - PERIOD_NS // 2, times_ns[-1]])
    assert np.array_equal(published[begin:end], actions)  # none is missing, none is made up
    wanted, states = (np.concatenate([getattr(s, part) for s in first]) for part in ("policy_actions", "states"))
    assert wanted == pytest.approx(actions, abs=1e-6) and not any(any(s.interventions) for s in first)
    # The robot is where it was last told to be, or about to be; on a machine that stalls for a moment, later.
    assert np.median(np.abs(states[1:] - actions[:-1])) < 0.005


def test_an_operators_part_of_an_episode_is_marked_and_counts_as_an_intervention(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "1.0.0", amplitude=0.03)  # one tick brings it back to the operator
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        rig.wait_running("1.0.0")
        rig.engine.start_episode("corrected", "reach", 0.0)
        rig.wait_for(lambda: len(rig.steps) > 2, "steps of the policy")
        rig.operator = (float(rig.control.command[0]), float(rig.control.command[1]))
        rig.engine.take_over(on=True)
        rig.wait_for(lambda: rig.control.mode == "OPERATOR", "the operator")
        rig.supervised()
        scores = len(rig.scores)
        corrected = lambda: [s for _, s in rig.steps if any(s.interventions)]  # noqa: E731
        rig.wait_for(lambda: any(np.isfinite(s.policy_actions).any() for s in corrected()), "what the policy wanted")
        assert len(rig.scores) == scores, "what the policy wanted meanwhile is not judged"
        rig.engine.take_over(on=False)
        rig.wait_running("1.0.0")
        assert rig.engine.end_episode("", success=True).intervention
        rig.engine.start_episode("alone", "reach", 0.0)
        assert not rig.engine.end_episode("", success=True).intervention
    marked = np.concatenate([s.interventions for _, s in rig.steps])
    actions = np.concatenate([s.actions for _, s in rig.steps])
    assert not marked[0] and not marked[-1] and np.ptp(actions[marked], axis=0) == pytest.approx([0.0, 0.0])


def test_a_policy_in_shadow_makes_no_steps(tmp_path: Path) -> None:
    """Nothing that it wants is commanded; what is, comes from somewhere else."""
    scripted_bundle(tmp_path / "1.0.0", amplitude=0.05)
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0"), shadow_only=True) as rig:
        rig.wait_running("1.0.0")
        rig.engine.start_episode("shown", "reach", 0.0)
        rig.wait_for(lambda: len(rig.shadow_actions) > 4, "chunks in shadow")
        rig.engine.end_episode("", success=True)
    assert not rig.steps
