"""Chunk scores: what they are by definition, that they have no unit, and that each chunk is compared with the right one."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_node.scores import Chunk, ChunkScorer, magnitude, reversal_rate, temporal_consistency_error

Floats = npt.NDArray[np.float64]


def random_chunk(seed: int, length: int, size: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(length, size)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), lengths=st.tuples(st.integers(1, 12), st.integers(1, 12)), size=st.integers(1, 4),
    shift=st.integers(-2, 14), deadband=st.sampled_from([0.0, 0.3, 2.0]),
)  # fmt: skip
def test_scores_are_their_definitions_counted_out(
    seed: int, lengths: tuple[int, int], size: int, shift: int, deadband: float
) -> None:
    a, b = random_chunk(seed, lengths[0], size), random_chunk(seed + 1, lengths[1], size)
    scale = np.random.default_rng(seed).uniform(0.1, 3.0, size)
    distances = [
        float(np.sqrt(sum(((float(a[shift + i, c]) - float(b[i, c])) / scale[c]) ** 2 for c in range(size))))
        for i in range(len(b))
        if shift >= 0 and shift + i < len(a)
    ]
    error = temporal_consistency_error(a, b, shift, scale)
    assert error == (pytest.approx(np.mean(distances)) if distances else None)

    steps = [[(float(a[t + 1, c]) - float(a[t, c])) / scale[c] for c in range(size)] for t in range(len(a) - 1)]
    assert magnitude(a, scale) == pytest.approx(np.mean([np.hypot.reduce(s) for s in steps]) if steps else 0.0)
    turns = [
        abs(now[c]) >= deadband and abs(before[c]) >= deadband and now[c] * before[c] < 0
        for before, now in itertools.pairwise(steps)
        for c in range(size)
    ]
    assert reversal_rate(a, scale, deadband) == pytest.approx(np.mean(turns) if turns else 0.0)


def test_scores_have_no_unit_and_do_not_care_where_the_robot_is() -> None:
    a, b, scale = random_chunk(1, 16, 2), random_chunk(2, 16, 2), np.array([0.5, 2.0])
    for factor, offset in ((1000.0, 0.0), (1.0, 3.0)):
        unit = np.array([factor, 1.0])
        c, d = (x * unit.astype(np.float32) + np.float32(offset) for x in (a, b))
        assert magnitude(c, scale * unit) == pytest.approx(magnitude(a, scale), rel=1e-4)
        assert reversal_rate(c, scale * unit, 0.01) == reversal_rate(a, scale, 0.01)
        moved = temporal_consistency_error(c, d, 8, scale * unit)
        assert moved == pytest.approx(temporal_consistency_error(a, b, 8, scale), rel=1e-4)


def test_a_policy_that_repeats_its_plan_is_consistent_and_a_jerky_one_scores_higher() -> None:
    t = np.arange(40)[:, None] / 50
    calm = np.sin(2 * np.pi * 0.3 * t).astype(np.float32)
    jerky = (np.sin(2 * np.pi * 0.3 * t) + 0.2 * (-1.0) ** np.arange(40)[:, None]).astype(np.float32)
    scale = np.array([0.08])
    assert temporal_consistency_error(calm[:16], calm[8:24], 8, scale) == 0.0
    assert reversal_rate(jerky, scale, 0.01) > 0.9 and reversal_rate(calm, scale, 0.01) < 0.1
    assert magnitude(jerky, scale) > 3 * magnitude(calm, scale)
    tremble = (calm + 1e-5 * (-1.0) ** np.arange(40)[:, None]).astype(np.float32) * 0  # a standstill with noise
    assert reversal_rate(tremble + 1e-5 * jerky, scale, 0.01) == 0.0


def chunk(seed: int, tick: int, generation: int = 1, length: int = 16, execute: int = 8) -> Chunk:
    return Chunk(generation, tick, execute, random_chunk(seed, length, 2))


def test_consistency_needs_a_predecessor_of_the_same_generation_that_reaches_so_far() -> None:
    scorer = ChunkScorer(np.ones(2), 0.0)
    assert "tce" not in scorer.score(chunk(1, 0))
    second = scorer.score(chunk(2, 8))
    assert second["tce"] == temporal_consistency_error(chunk(1, 0).actions, chunk(2, 8).actions, 8, np.ones(2))
    assert "tce" not in scorer.score(chunk(3, 24))  # 16 ticks later: the one before ended there
    assert "tce" not in scorer.score(chunk(4, 32, generation=2))
    assert "tce" in scorer.score(chunk(5, 40, generation=2))
    assert "tce" not in scorer.score(chunk(6, 38, generation=2))  # earlier than the one before: nothing to compare
    scorer.reset()
    assert "tce" not in scorer.score(chunk(7, 48, generation=2))


def test_only_the_part_that_acts_is_judged_by_its_motion() -> None:
    calm, wild = chunk(1, 0), chunk(1, 0)
    wild.actions[10:] = 100.0  # beyond what is executed
    scores = [ChunkScorer(np.ones(2), 0.0).score(c) for c in (calm, wild)]
    assert scores[0] == scores[1]
