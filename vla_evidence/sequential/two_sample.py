# SPDX-License-Identifier: Apache-2.0
"""Is the canary worse than the incumbent? An e-process for two groups with known assignment probability.

Each unit (an episode) goes to the canary with a probability π that is known before it, independently of everything else, and
ends with y in [0, 1] (success: 1, failure: 0). H0: P(success | canary) >= P(success | incumbent) - margin, whatever the past.
With q₀, q₁ (posterior means of a Beta prior, from past units only) and p* the point of H0 nearest to q in Kullback-Leibler
divergence of the pair (group, y), the evidence is multiplied by ``q_g(y) / p*_g(y)``, if q lies in the alternative at all.
p* being such a projection on a convex set, the factor has a conditional mean <= 1 under H0; without a margin, where
``p* = (1-π) q₀ + π q₁`` for both groups, the mean is exactly 1 whenever the groups do not differ, for any mix of robots and
any drift, for the group is then independent of y. By Ville's inequality P(the evidence ever reaches 1/α) <= α.

For y between 0 and 1 the factor is interpolated: being linear in y, its mean depends on the mean of y alone.

Turner and Grünwald, Statistics and Probability Letters 198 (2023), section 2; Turner, Ly and Grünwald, arXiv 2106.02693.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_evidence.sequential.score_test import constrained_rates

INCUMBENT, CANARY = 0, 1
_CHUNK = 1 << 16
_EDGE = 1e-9
"""No estimate is nearer to 0 or 1: a bet must not be lost altogether by one unit, however sure the prior is."""


@dataclass(frozen=True)
class BetaPrior:
    """What is believed of a success rate before the first unit, as so many earlier successes and failures."""

    successes: float = 1.0
    failures: float = 1.0

    @property
    def mean(self) -> float:
        """The rate expected before the first unit."""
        return self.successes / (self.successes + self.failures)

    @staticmethod
    def from_history(successes: float, episodes: float, weight: float) -> BetaPrior:
        """Return a prior centred on what the registry has seen of a version, worth ``weight`` episodes (at most all of them)."""
        rate = (successes + 0.5) / (episodes + 1.0)
        strength = max(1.0, min(weight, episodes))
        return BetaPrior(rate * strength, (1.0 - rate) * strength)

    @staticmethod
    def expecting_drop(successes: float, episodes: float, *, drop: float, weight: float) -> BetaPrior:
        """Return a canary's prior: what history says of the incumbent, less a ``drop`` worth finding, worth ``weight`` episodes.

        Where the rate is below ``2 drop`` half of it is expected. A belief in harm is a stake on it: if there is none the
        evidence falls, and P(it ever reaches 1/α) <= α as with any other prior.
        """
        rate = BetaPrior.from_history(successes, episodes, weight).mean
        expected = max(rate - drop, 0.5 * rate)
        return BetaPrior(expected * weight, (1.0 - expected) * weight)


class TwoSampleEProcess:
    """Evidence against "the canary is at most ``margin`` worse than the incumbent", to be looked at after every unit.

    Args:
        margin: of success rate, 0 to below 1.
        incumbent, canary: priors; they change how soon a difference is found, never how often one is found that is not there.
    """

    def __init__(
        self, margin: float = 0.0, *, incumbent: BetaPrior | None = None, canary: BetaPrior | None = None
    ) -> None:
        self.margin = margin
        priors = (incumbent or BetaPrior(), canary or BetaPrior())
        self._a = [p.successes for p in priors]
        self._n = [p.successes + p.failures for p in priors]
        self._prior_a, self._prior_n = tuple(self._a), tuple(self._n)
        self.log_e = 0.0
        """Logarithm of the evidence against H0; 0 = none."""
        self.max_log_e = 0.0
        """Largest ``log_e`` so far; the test rejects when it reaches log(1/α), and that is final."""

    def update(self, group: int, y: float, probability: float) -> float:
        """Take one unit in; return ``log_e``.

        Args:
            group: :data:`INCUMBENT` or :data:`CANARY`.
            y: 1 success, 0 failure, or a share between.
            probability: with which this unit went to the canary, known before it.
        """
        q0, q1 = (min(max(a / n, _EDGE), 1.0 - _EDGE) for a, n in zip(self._a, self._n, strict=True))
        if q1 < q0 - self.margin:
            p0 = (1.0 - probability) * q0 + probability * q1
            if self.margin > 0.0:
                p0 = float(project(q0, q1, self.margin, probability))
            q, p = (q0, p0) if group == INCUMBENT else (q1, p0 - self.margin)
            self.log_e += math.log(y * q / p + (1.0 - y) * (1.0 - q) / (1.0 - p))
            self.max_log_e = max(self.max_log_e, self.log_e)
        self._a[group] += y
        self._n[group] += 1.0
        return self.log_e

    def update_many(self, groups: ArrayLike, ys: ArrayLike, probability: ArrayLike) -> float:
        """Take many units in, in their order and in bounded memory; return ``log_e``.

        Arguments as for :meth:`update`, arrays of shape [units].
        """
        g, y, pi = np.broadcast_arrays(np.asarray(groups), np.asarray(ys, float), np.asarray(probability, float))
        for start in range(0, g.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            path = log_e_paths(g[part], y[part], pi[part], margin=self.margin, counts=(self._a, self._n))
            self.max_log_e = max(self.max_log_e, self.log_e + float(path.max()))
            self.log_e += float(path[-1])
            for group in (INCUMBENT, CANARY):
                members = g[part] == group
                self._a[group] += float(y[part][members].sum())
                self._n[group] += float(members.sum())
        return self.log_e

    def restart(self) -> None:
        """Learn anew from the priors, and keep the evidence: conditions may have changed.

        A bet on what is known at the time: H0 and α are as before. An estimate from ten thousand earlier units would hardly move.
        """
        self._a, self._n = list(self._prior_a), list(self._prior_n)


def log_e_paths(
    groups: ArrayLike,
    ys: ArrayLike,
    probability: ArrayLike,
    *,
    margin: float = 0.0,
    counts: tuple[Any, Any] = ((1.0, 1.0), (2.0, 2.0)),
) -> NDArray[np.float64]:
    """Return ``log_e`` after every unit, for many runs at once.

    Args:
        groups: 0 or 1, shape [..., units].
        ys: outcomes in [0, 1], the same shape.
        probability: P(canary), a shape that broadcasts to it.
        margin: as for :class:`TwoSampleEProcess`.
        counts: (successes, units) believed before the first, of incumbent and canary each; the uniform prior by default.
    """
    g, y, pi = np.asarray(groups), np.asarray(ys, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    q = []
    for group in (INCUMBENT, CANARY):
        a0, n0 = float(counts[0][group]), float(counts[1][group])
        member = g == group
        a = np.cumsum(np.where(member, y, 0.0), axis=-1)
        n = np.cumsum(member, axis=-1, dtype=np.float64)
        q.append(np.concatenate([np.full_like(a[..., :1], a0 / n0), (a0 + a[..., :-1]) / (n0 + n[..., :-1])], axis=-1))
    q0, q1 = (np.clip(estimate, _EDGE, 1.0 - _EDGE) for estimate in q)
    p0 = (1.0 - pi) * q0 + pi * q1
    active = q1 < q0 - margin
    if margin > 0.0:
        p0 = p0.copy()
        p0[active] = project(q0[active], q1[active], margin, np.broadcast_to(pi, g.shape)[active])
    own_q = np.where(g == INCUMBENT, q0, q1)
    own_p = np.where(g == INCUMBENT, p0, p0 - margin)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = y * (own_q / own_p) + (1.0 - y) * ((1.0 - own_q) / (1.0 - own_p))
        steps = np.where(active, np.log(factor), 0.0)
    return np.asarray(np.cumsum(steps, axis=-1))


def project(q0: Any, q1: Any, margin: Any, pi: Any) -> Any:
    """Return p₀ of the projection of (q₀, q₁) on p₁ = p₀ - margin: the constrained maximum of likelihood for such counts.

    The closed form is improved by one step of Newton's method, for the projection to be exact in 53 bits.
    """
    p0 = constrained_rates(((1.0 - pi) * q0, pi * q1), (1.0 - pi, pi), margin)[0]
    low, high = np.maximum(np.minimum(q0, q1 + margin), margin), np.maximum(q0, q1 + margin)
    p0 = np.clip(p0, low + 1e-12 * (high - low), high - 1e-12 * (high - low))
    p1 = p0 - margin
    first = (1.0 - pi) * (p0 - q0) / (p0 * (1.0 - p0)) + pi * (p1 - q1) / (p1 * (1.0 - p1))
    second = (1.0 - pi) * (q0 / p0**2 + (1.0 - q0) / (1.0 - p0) ** 2) + pi * (q1 / p1**2 + (1.0 - q1) / (1.0 - p1) ** 2)
    return np.clip(p0 - first / second, low, high)
