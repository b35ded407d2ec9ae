# SPDX-License-Identifier: Apache-2.0
"""The plain rule of two means: what it does is what it says, by episode and by robot."""

from __future__ import annotations

import pytest

from vla_evidence.canary.config import CanaryConfig, Stage
from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.verdict import Decision

FULL = Stage("full", 1.0, 1.0, 0.0, None)
BY_EPISODE = (Stage("canary", 1.0, 0.5, 100.0, None), Stage("wide", 1.0, 0.5, 100.0, None), FULL)
BY_ROBOT = (Stage("canary", 0.5, 1.0, 100.0, None), Stage("wide", 0.5, 1.0, 100.0, None), FULL)


@pytest.mark.parametrize("stages", [BY_EPISODE, BY_ROBOT])
@pytest.mark.parametrize(
    ("new", "old", "first", "last"),
    [
        (90, 80, Decision.ADVANCE, Decision.ADVANCE),
        (80, 80, Decision.ADVANCE, Decision.ASK),
        (79, 80, Decision.ADVANCE, Decision.ASK),
        (70, 80, Decision.ROLLBACK, None),
    ],
)
def test_parity_widens_and_only_an_improvement_goes_to_every_robot(
    stages: tuple[Stage, ...], new: int, old: int, first: Decision, last: Decision | None
) -> None:
    """``new`` and ``old``: successes of 100 episodes each."""
    judge = CanaryJudge(CanaryConfig(stages=stages, rule="simple"), "x")
    holders = judge.begin_stage(0, 0.0, ["a", "b"])
    assert judge.verdict(50.0).decision is Decision.HOLD
    assert judge.verdict(100.0).decision is Decision.ASK, "too few episodes"
    outcomes = [[True] * successes + [False] * (100 - successes) for successes in (old, new)]
    if stages is BY_EPISODE:
        judge.add_many([0] * 100 + [1] * 100, outcomes[0] + outcomes[1])
    else:
        judge.add_robots({robot: outcomes[robot in holders] for robot in "ab"})
    assert judge.verdict(101.0).decision is first
    if last is not None:
        judge.begin_stage(1, 101.0, ["a", "b"])
        assert judge.verdict(150.0).decision is Decision.HOLD
        assert judge.verdict(201.0).decision is last
