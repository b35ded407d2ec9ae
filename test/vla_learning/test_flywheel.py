# SPDX-License-Identifier: Apache-2.0
"""Exercise 3 at the smallest size that shows its parts: real episodes, a real operator, real training, a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_evidence.simulate.report import Report
from vla_learning.simulate.flywheel import ARMS, Settings, run
from vla_learning.simulate.newcomer import NEW_COLOUR, OLD_COLOURS, make_newcomer, task_for
from vla_learning.simulate.operator import examples_of
from vla_learning.simulate.operator import run as run_episode
from vla_learning.simulate.trajectory import TrajectorySettings
from vla_sim.arm import BLOCK_COLOURS, BLOCK_SIZE_M, Arm
from vla_sim.bundle import load_policy
from vla_sim.expert import goal_point
from vla_sim.kinematics import tip_position

pytestmark = pytest.mark.long

TINY = TrajectorySettings(weeks=1, episodes=6, earlier=3, measured_old=4, measured_new=4, steps=2, batch=4, seed=5)


@pytest.fixture(scope="module")
def report() -> Report:
    return run(Settings(TINY, repeats=1))


def test_every_fleet_begins_alike_and_has_failures_to_correct(report: Report) -> None:
    arms = report.figures["arms"]
    assert list(arms) == list(ARMS)
    first, *others = arms.values()
    for figure in ("old", "new", "success"):
        assert all(first[figure][0][0] == other[figure][0][0] for other in others)
    assert all(first["corrections"] == other["corrections"] for other in others), "the same tasks in the first week"
    assert first["old"][0][0] > 0.5 and first["new"][0][0] < 0.5
    assert first["corrections"][0][1] > 0


def test_the_report_has_a_sentence_a_table_an_arm_and_plots(report: Report, tmp_path: Path) -> None:
    assert report.text.startswith(report.sentence) and all(name in report.text for name in ARMS)
    pictures = [path for path in report.write(tmp_path) if path.suffix == ".png"]
    assert len(pictures) == 2 and all(path.stat().st_size > 5000 for path in pictures)


def test_the_operator_ends_at_the_block_and_only_what_was_shown_is_learned(tmp_path: Path) -> None:
    policy, arm, rng = load_policy(make_newcomer(tmp_path / "b", 0)), Arm(), np.random.default_rng(3)
    failed = run_episode(arm, policy, task_for(NEW_COLOUR, rng), patience_s=1.5, every=5)
    block = arm.blocks()[BLOCK_COLOURS.index(NEW_COLOUR)]
    rest = tip_position(tuple(failed.states[-1].astype(float)))
    assert failed.taken_over == 75 and not failed.success
    assert np.linalg.norm(rest - goal_point(block, BLOCK_SIZE_M)) < 0.03
    well = run_episode(arm, policy, task_for(OLD_COLOURS[0], rng), patience_s=6.0, every=5)
    assert well.success and well.taken_over is None
    examples = examples_of([(0.7, [well]), (0.3, [failed])])
    shown = examples.at >= len(well.states)
    assert (examples.at[shown] >= len(well.states) + 75).all() and set(examples.until[~shown]) == {len(well.states)}
    assert examples.weights[shown].sum() == pytest.approx(0.3)
