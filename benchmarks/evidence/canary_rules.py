# SPDX-License-Identifier: Apache-2.0
"""When other tools would take a canary back: re-implementations of their rules for many runs at once.

Each rule looks at :class:`Watched` and returns, for each run, the canary episode (from 1) after which it rolls back, 0 if it
does not. The rules are the documented ones, with the parameters that the comparison names; what a tool leaves to its user
(how long a measurement is, how often to look) is said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri  # type: ignore[import-untyped]

from vla_evidence.simulate.rules import should_advance

Episodes = NDArray[np.int64]


@dataclass(frozen=True)
class Watched:
    """What there is to see of a canary, for many runs.

    Attributes:
        canary: success of each canary episode, bool [runs, episodes].
        incumbent_episodes, incumbent_successes: of all others until that canary episode ended, [runs, episodes].
        baseline: success of as many episodes of the incumbent, side by side with the canary's, bool [runs, episodes].
    """

    canary: NDArray[np.bool_]
    incumbent_episodes: NDArray[np.int64]
    incumbent_successes: NDArray[np.int64]
    baseline: NDArray[np.bool_]

    @property
    def episodes(self) -> int:
        """Canary episodes in a run."""
        return int(self.canary.shape[1])

    @property
    def canary_successes(self) -> NDArray[np.int64]:
        """So far, after each canary episode."""
        return np.cumsum(self.canary, axis=1, dtype=np.int64)


def first(rolls_back: NDArray[np.bool_], looks: Sequence[int] | NDArray[Any]) -> Episodes:
    """Return the first of ``looks`` (canary episodes, from 1) at which a run is rolled back, 0 for never."""
    at = np.asarray(looks, dtype=np.int64)
    return np.where(rolls_back.any(axis=1), at[np.argmax(rolls_back, axis=1)], 0)


def argo(watched: Watched, limit: float = 0.85, window: int = 20, failure_limit: int = 3) -> Episodes:
    """Argo Rollouts: ``successCondition: result >= limit``, ``failureLimit``, one measurement for every ``window`` episodes.

    A measurement is the success rate since the one before (as a query over ``[5m]`` at an interval of 5 m). The analysis fails,
    and the rollout aborts, once *more than* ``failureLimit`` measurements have failed in all, in a row or not: the page
    docs/features/analysis.md of argoproj/argo-rollouts ("Background Analysis"), and ``assessMetricStatus`` in its
    analysis/analysis.go (``Failed > FailureLimit``). Measurements in error (``consecutiveErrorLimit``) and inconclusive ones
    (neither condition met) do not occur here: every measurement has its episodes and the one condition decides.
    """
    measurements = watched.episodes // window
    successes = watched.canary[:, : measurements * window].reshape(-1, measurements, window).sum(axis=2)
    failed = np.cumsum(successes / window < limit, axis=1)
    return first(failed > failure_limit, window * np.arange(1, measurements + 1))


def aws(watched: Watched, threshold_percentage: float = 15.0, minimum: int = 20) -> Episodes:
    """AWS IoT Jobs: cancel when more than ``thresholdPercentage`` failed, of at least ``minNumberOfExecutedThings``.

    AbortCriteria in the AWS IoT API reference, "Job rollout and abort configurations" in its developer guide, and
    IoTJobAbortCriteria of Greengrass ("exceeds the thresholdPercentage"). An episode stands for an executed thing; the criteria
    are looked at after each.
    """
    done = np.arange(1, watched.episodes + 1)
    failures = done - watched.canary_successes
    return first((100.0 * failures > threshold_percentage * done) & (done >= minimum), done)


def kayenta_episodes(watched: Watched, judgements: int = 3, confidence: float = 0.98) -> Episodes:
    """Spinnaker's Kayenta, the friendlier reading: Mann-Whitney on the episodes themselves, not significant = pass.

    The lifetime is cut into ``judgements`` intervals, each judged on its own episodes ("use lookback: no") against a baseline
    of equal size; a run below the marginal score fails the whole canary, and a single metric scores 0 or 100: "Best practices
    for configuring canary" and "How canary judgment works" of the Spinnaker documentation (lifetime 3 h, interval 1 h). The
    confidence of 98 % is that of NetflixACAJudge. On successes and failures Mann-Whitney is the two-proportion z test,
    with the continuity correction that R's ``wilcox.test`` has.
    """
    z = float(ndtri(0.5 + confidence / 2.0))
    ends = [round(watched.episodes * (i + 1) / judgements) for i in range(judgements)]
    low = []
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        n = end - begin
        x, y = (s[:, begin:end].sum(axis=1) for s in (watched.canary, watched.baseline))
        pooled = (x + y) / (2.0 * n)
        centred = n * (x - y) / 2.0  # U - n²/2: each pair counts 1, 1/2 or 0
        sigma = np.sqrt(n * n * n * pooled * (1.0 - pooled) / 2.0 * (2.0 * n) / (2.0 * n - 1.0))
        low.append(centred + 0.5 < -z * sigma)
    return first(np.stack(low, axis=1), ends)


def kayenta_rates(watched: Watched, points: int = 50, confidence: float = 0.98, tolerance: float = 0.25) -> Episodes:
    """Spinnaker's Kayenta as it judges time series: one judgement on ``points`` success rates of canary and baseline each.

    Fifty data points are what "Best practices for configuring canary" asks for. A metric is Low when the upper end of the
    confidence interval of the Hodges-Lehmann shift lies below ``-tolerance`` times the estimate's size (MannWhitneyClassifier
    in NetflixACAJudge: tolerance 0.25, confidence 0.98; kayenta#780 shows its consequences). The interval's ends are where the
    normal approximation with ties crosses its quantiles, as in R's ``wilcox.test``. Kayenta's removal of outliers is left out.
    """
    size = watched.episodes // points
    x, y = (_histogram(s[:, : points * size].reshape(-1, points, size)) for s in (watched.canary, watched.baseline))
    z = float(ndtri(0.5 + confidence / 2.0))
    # Shifted by anything between j/size and (j+1)/size, a pair counts if it differs by j+1 or more: j = -size-1 … size.
    differing = np.stack([_pairs(x, y, d, size) for d in range(-size, size + 1)], axis=1)
    above = np.concatenate([np.cumsum(differing[:, ::-1], axis=1)[:, ::-1], np.zeros((len(x), 1))], axis=1)
    centred = above - points * points / 2.0
    ties = ((x**3 - x) + (y**3 - y)).sum(axis=1, keepdims=True)
    both = 2.0 * points
    sigma = np.sqrt(points * points / 12.0 * (both + 1.0 - ties / (both * (both - 1.0))))
    score = (centred - 0.5 * np.sign(centred)) / np.maximum(sigma, 1e-12)
    shifts = np.arange(-size - 1, size + 1) / size
    upper, estimate = (shifts[np.argmax(score < q, axis=1)] for q in (-z, 0.0))
    return first((upper < -tolerance * np.abs(estimate))[:, None], [points * size])


def _histogram(successes: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return how many points have 0, 1, … successes: [runs, points, size] → [runs, size + 1]."""
    numbers = np.arange(successes.shape[2] + 1)
    return np.asarray((successes.sum(axis=2)[:, :, None] == numbers).sum(axis=1), dtype=np.float64)


def _pairs(x: NDArray[np.float64], y: NDArray[np.float64], difference: int, size: int) -> NDArray[np.float64]:
    """Return how many pairs (one of x, one of y) have x - y = ``difference``."""
    low, high = max(0, difference), min(size, size + difference)
    return np.asarray((x[:, low : high + 1] * y[:, low - difference : high - difference + 1]).sum(axis=1))


def z_test(watched: Watched, looks: Sequence[int], alpha: float = 0.05) -> Episodes:
    """The textbook's two-proportion z test (pooled, one-sided), as if each look were the only one."""
    at = np.asarray(looks) - 1
    n1, n0 = at + 1.0, watched.incumbent_episodes[:, at].astype(np.float64)
    x1, x0 = watched.canary_successes[:, at], watched.incumbent_successes[:, at]
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (x1 + x0) / (n1 + n0)
        z = (x1 / n1 - x0 / n0) / np.sqrt(pooled * (1.0 - pooled) * (1.0 / n1 + 1.0 / n0))
        return first(z < ndtri(alpha), looks)


def lessons_rule(watched: Watched, looks: Sequence[int]) -> Episodes:
    """``CanaryDeployment.should_advance`` of the fleet lesson: 50 samples each, the mean at most 0.02 below the incumbent's.

    "Degradation at any stage: rollback": a look with enough samples at which it says no rolls back.
    """
    at = np.asarray(looks) - 1
    enough, advance = should_advance(
        watched.canary_successes[:, at], at + 1, watched.incumbent_successes[:, at], watched.incumbent_episodes[:, at]
    )
    return first(enough & ~advance, looks)
