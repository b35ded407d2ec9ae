# SPDX-License-Identifier: Apache-2.0
"""Other tests of "B succeeds more often than A" on pairs, one-sided, for many runs at once.

Each takes successes of A and of B, bool [runs, pairs], and returns the pair (from 1) after which it says so, 0 if it never does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln, ndtri  # type: ignore[import-untyped]
from scipy.stats import binom  # type: ignore[import-untyped]

from benchmarks.evidence.canary_rules import first

Successes = NDArray[np.bool_]
Pairs = NDArray[np.int64]


def mcnemar_at_end(a: Successes, b: Successes, alpha: float) -> Pairs:
    """McNemar's exact test, once, after the last pair: of D discordant pairs B won W, P(Binomial(D, 1/2) >= W) <= α."""
    won, discordant = (b & ~a).sum(axis=1), (a ^ b).sum(axis=1)
    return first((binom.sf(won - 1, discordant, 0.5) <= alpha)[:, None], [a.shape[1]])


def z_test(a: Successes, b: Successes, looks: Sequence[int], alpha: float) -> Pairs:
    """The textbook's two-proportion z test (pooled), as if each look were the only one."""
    at = np.asarray(looks) - 1
    n = at + 1.0
    x, y = np.cumsum(a, axis=1, dtype=np.int32)[:, at], np.cumsum(b, axis=1, dtype=np.int32)[:, at]
    pooled = (x + y) / (2.0 * n)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (y - x) / np.sqrt(2.0 * n * pooled * (1.0 - pooled))
    return first(z > -ndtri(alpha), looks)


def mcnemar_betting(a: Successes, b: Successes, alpha: float) -> Pairs:
    """Bet on B at each discordant pair; stop at wealth 1/α, which under H0 is reached with probability α at most.

    The bets are those of a uniform mixture over P(B wins | discordant) in (1/2, 1): after W wins and L losses the wealth is
    2 ∫ (2θ)^W (2(1-θ))^L dθ over (1/2, 1). Waudby-Smith and Ramdas, JRSS B 86 (2024), on McNemar's discordant pairs.
    """
    won = np.cumsum(b & ~a, axis=1, dtype=np.int32)
    lost = np.cumsum(a & ~b, axis=1, dtype=np.int32)
    table = _log_wealth(int(won[:, -1].max()), int(lost[:, -1].max()))
    return first(table[won, lost] >= -math.log(alpha), np.arange(1, a.shape[1] + 1))


@lru_cache(maxsize=8)
def _log_wealth(most_won: int, most_lost: int) -> NDArray[np.float64]:
    won, lost = np.meshgrid(np.arange(most_won + 1.0), np.arange(most_lost + 1.0), indexing="ij")
    upper = betainc(lost + 1.0, won + 1.0, 0.5)  # share of Beta(W+1, L+1) above 1/2
    with np.errstate(divide="ignore"):
        return np.asarray((won + lost + 1.0) * math.log(2.0) + betaln(won + 1.0, lost + 1.0) + np.log(upper))


def savi(a: Successes, b: Successes, alpha: float, prior: float = 1.0) -> Pairs:
    """The e-process of Turner and Grünwald (Stat. Prob. Letters 198, 2023, section 2) on pairs, written from the paper.

    Each pair multiplies the evidence by q_a(y_a) q_b(y_b) / (p(y_a) p(y_b)), p = (q_a + q_b)/2, q the posterior means before it;
    pairs before which q_b <= q_a are passed over.
    """
    seen = np.arange(a.shape[1])
    qa, qb = ((prior + np.cumsum(s, axis=1) - s) / (2.0 * prior + seen) for s in (a, b))
    p = (qa + qb) / 2.0
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.log(np.where(a, qa / p, (1.0 - qa) / (1.0 - p))) + np.log(
            np.where(b, qb / p, (1.0 - qb) / (1.0 - p))
        )
    log_e = np.cumsum(np.where(qb > qa, steps, 0.0), axis=1)
    return first(log_e >= -math.log(alpha), seen + 1)


def stop_of(pairs: NDArray[Any], decided: NDArray[np.bool_]) -> Pairs:
    """Return the form of this module's verdicts from stopping times and "B is better"."""
    return np.where(decided, pairs, 0).astype(np.int64)
