# SPDX-License-Identifier: Apache-2.0
"""Sums of low-rank matrices on their factors give what the dense matrices give."""

from __future__ import annotations

import numpy as np
import pytest

from vla_learning.adapters.lowrank import LowRank, difference, gram, recompress, weighted_sum
from vla_learning.adapters.merger import LoRAFederatedMerger
from vla_learning.adapters.robust import clip_factors, geometric_median, most_attackers, multi_krum

RNG = np.random.default_rng(5)
OUT, IN = 40, 30
WEIGHTS = [0.5, 0.2, 0.3]


def part(rank: int, scale: float = 1.0) -> LowRank:
    return LowRank(scale * RNG.standard_normal((OUT, rank)), RNG.standard_normal((rank, IN)))


def dense(product: LowRank) -> np.ndarray:
    return product.b @ product.a


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_stacked_factors_of_mixed_ranks_are_the_weighted_sum() -> None:
    parts = [part(4), part(1), part(9)]
    wanted = sum(weight * dense(p) for weight, p in zip(WEIGHTS, parts, strict=True))
    merged = weighted_sum(parts, WEIGHTS)
    assert merged.rank == 14 and relative(dense(merged), wanted) < 1e-14
    assert merged.norm() == pytest.approx(np.linalg.norm(wanted), rel=1e-13)
    assert difference(merged, weighted_sum(parts[::-1], WEIGHTS[::-1])) / merged.norm() < 1e-14


def test_inner_products_are_those_of_the_dense_matrices() -> None:
    parts = [part(4), None, part(7), part(2)]
    full = [np.zeros((OUT, IN)) if p is None else dense(p) for p in parts]
    wanted = np.array([[(one * other).sum() for other in full] for one in full])
    assert np.allclose(gram(parts), wanted, rtol=1e-12, atol=1e-9)
    assert not gram([None, None]).any()


@pytest.mark.parametrize("ranks", [(3, 5), (20, 25), (1, 1)])
def test_recompression_is_the_truncated_svd_of_the_dense_matrix(ranks: tuple[int, int]) -> None:
    merged = weighted_sum([part(rank) for rank in ranks], [1.0, -2.0])
    u, s, vt = np.linalg.svd(dense(merged), full_matrices=False)
    for rank in (1, 2, 6):
        small, sigma = recompress(merged, rank)
        assert relative(dense(small), (u[:, :rank] * s[:rank]) @ vt[:rank]) < 1e-11
        assert np.allclose(sigma, s[: len(sigma)], rtol=1e-11, atol=1e-11) and small.rank == min(rank, len(sigma))
        assert difference(merged, small) == pytest.approx(np.linalg.norm(s[rank:]), rel=1e-9, abs=1e-11)


def test_the_lessons_merger_is_exact_where_averaged_factors_are_not() -> None:
    merger = LoRAFederatedMerger(base_dim=64, lora_rank=8)
    adapters = [merger.create_lora() for _ in range(5)]
    assert adapters[0]["A"].shape == (8, 64) and adapters[0]["B"].shape == (64, 8)
    wanted = sum(merger.compute_adapter_delta(adapter) for adapter in adapters) / 5
    merged = merger.merge_adapters(adapters)
    assert merged["A"].shape == (40, 64) and merged["B"].shape == (64, 40)
    assert relative(merger.compute_adapter_delta(merged), wanted) < 1e-14
    averaged = {side: sum(adapter[side] for adapter in adapters) / 5 for side in "AB"}
    assert relative(merger.compute_adapter_delta(averaged), wanted) > 0.5
    weights = [3.0, 1.0, 0.0, 0.0, 0.0]
    exact = 3.0 * merger.compute_adapter_delta(adapters[0]) + merger.compute_adapter_delta(adapters[1])
    assert relative(merger.compute_adapter_delta(merger.merge_adapters(adapters, weights)), exact) < 1e-14
    assert merger.merge_adapters(adapters, weights, merge_rank=16)["A"].shape == (16, 64)


def points(vectors: np.ndarray) -> np.ndarray:
    return vectors @ vectors.T


def test_a_geometric_median_has_no_neighbour_with_a_smaller_sum_of_distances() -> None:
    vectors, weights = RNG.standard_normal((7, 5)), np.full(7, 1 / 7)
    found = geometric_median(points(vectors), weights)
    assert found.sum() == pytest.approx(1.0) and (found >= 0).all()

    def total(point: np.ndarray) -> float:
        return float(weights @ np.linalg.norm(vectors - point, axis=1))

    best = found @ vectors
    assert all(total(best) <= total(best + 1e-3 * step) for step in RNG.standard_normal((200, 5)))


def test_a_geometric_median_is_the_client_that_has_more_than_half_of_the_weight() -> None:
    vectors = RNG.standard_normal((4, 6))
    found = geometric_median(points(vectors), np.array([0.6, 0.2, 0.1, 0.1]))
    assert np.linalg.norm(found @ vectors - vectors[0]) < 1e-6
    alike = np.ones((3, 3))
    assert np.allclose(geometric_median(alike, np.array([0.2, 0.3, 0.5])), [0.2, 0.3, 0.5])


def test_krum_leaves_out_the_clients_that_lie_apart_and_clipping_shortens_the_long() -> None:
    vectors = np.concatenate([np.ones(8) + 0.1 * RNG.standard_normal((8, 8)), -50 * np.ones((2, 8))])
    weights = np.full(10, 0.1)
    found = multi_krum(points(vectors), weights, 2)
    assert not found[8:].any() and np.allclose(found[:8], 1 / 8)
    clips = clip_factors(points(vectors), 1.0)
    lengths = np.linalg.norm(vectors, axis=1)
    assert (clips * lengths <= np.median(lengths) * (1 + 1e-12)).all() and (
        clips[lengths < np.median(lengths)] == 1
    ).all()
    assert [most_attackers(k) for k in (2, 4, 5, 10, 11)] == [0, 0, 1, 3, 4]
