# SPDX-License-Identifier: Apache-2.0
"""Is the canary worse where whole robots run it? An e-process whose unit is the robot.

Episodes of one robot are alike, so where a robot runs one version only, its episodes are no independent units: five robots are
five units, however many episodes they had. The unit is a robot's mean x over its episodes in a stage. Of a cohort, k of N robots
were drawn as canaries; they are looked at in an order that has nothing to do with the draw, so that the next one is a canary
with probability π = canaries left / robots left, whatever was seen before. Each robot multiplies the evidence by

    1 + λ π (x - c) if it runs the incumbent, 1 - λ (1-π) (x - c) if it is a canary,

with a stake λ >= 0 and a centre c from earlier robots only, λ small enough that no x in [0, 1] makes it negative. Being linear
in x, its mean is 1 + λ π (1-π) (mean of the incumbent - mean of the canary): at most 1 whenever the *mean* of the canary is not
lower, whatever the distributions. Robots are taken for independent draws from one population of robots; if the version makes no
difference to any robot of this fleet the mean is exactly 1 by the draw alone. A margin is added to the canary's x first.

The stake is near the one of largest expected growth, from the means and the spread of the robots so far, so it follows how
much robots differ; a bad guess costs power, never validity.

Evidence of harm can never exceed the number of ways to draw the cohort, N over k: with the shifted x held fast, the factors of
all draws are positive and their mean is 1, and no draw was less probable than one of them. One canary among ten robots cannot
reach 20, and :attr:`~vla_evidence.canary.robot_cohort.RobotCohort.largest_log_e` says so before anything is run. (Evidence that a
*margin* is not lost can exceed it: a canary's success lies above, an incumbent's failure below all that the other group can do.)
Nor do few robots show much about a mean: if the version breaks one robot in ten, five canaries meet none of these in 59 % of
rollouts; see :func:`smallest_drop`.

A stage's process learns and takes over nothing from an earlier one. Robots that ran the incumbent there are units here again:
to whom it is known how they did, the next x is no fresh draw, and the factor's mean may exceed 1 though the means are equal. By
itself each stage's process is an e-process, whatever came before, as its cohort was drawn independently of everything else. So
if a stage begins with evidence w instead of 1, it reaches 1/α with probability <= wα; and if all stakes w sum to 1, P(any of the
stages' processes ever reaches 1/α) <= α.

Waudby-Smith and Ramdas, Journal of the Royal Statistical Society B 86 (2024), section 4; Turner, Ly and Grünwald, arXiv
2106.02693.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vla_evidence.errors import InputError, check_margin, check_number, check_probability, check_rate
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT

_SMALLEST_SD = 0.02
_BOLDNESS = 1.5
_LARGEST_STAKE = 0.95
_MOST_BELIEF = 1e9


def smallest_drop(canaries: int, alpha: float) -> float:
    """Return the smallest drop of the mean that so many canary robots without a fault can exclude: 1 - α^(1/canaries).

    A version that breaks a share m of the robots for good costs a drop of m (where the incumbent always succeeds), and leaves all
    canaries whole with probability (1-m)^canaries: no test of level α excludes m on such data while this is above α. 29 robots:
    10 %. Where incumbents fail as well, a canary that is better than they are can exclude smaller drops.
    """
    return 1.0 - check_probability("alpha", alpha) ** (1.0 / canaries) if canaries > 0 else 1.0


@dataclass(frozen=True)
class RobotPrior:
    """What is believed of the robots' means before the first one.

    Attributes:
        mean, sd: of an incumbent's robots.
        robots: how many robots this belief is worth.
        drop: by which a canary is expected to be worse; what is worth finding.
    """

    mean: float = 0.8
    sd: float = 0.15
    robots: float = 2.0
    drop: float = 0.1

    def __post_init__(self) -> None:
        check_rate("mean", self.mean)
        check_margin("drop", self.drop)
        for field, value, largest in (("sd", self.sd, 1.0), ("robots", self.robots, _MOST_BELIEF)):
            if not 0.0 < check_number(field, value) <= largest:
                raise InputError("INPUT_VALUE", field, f"{value} does not lie above 0 and up to {largest:g}")

    @staticmethod
    def from_history(means: Sequence[float], *, drop: float = 0.1) -> RobotPrior:
        """Return the prior that earlier means of robots give (at least two; worth at most ten robots)."""
        for mean in means:
            check_rate("means", mean)
        n = len(means)
        if n < 2:
            raise InputError("INPUT_COUNT", "means", f"{n} robots are too few to tell how robots differ")
        centre = math.fsum(means) / n
        variance = math.fsum((mean - centre) ** 2 for mean in means) / (n - 1)
        return RobotPrior(centre, max(math.sqrt(variance), _SMALLEST_SD), min(10.0, n), drop)


class RobotEProcess:
    """Evidence that the canary is worse by more than a margin, or, with ``better``, that it is not worse by the margin.

    Args:
        margin: of the robots' means, 0 to below 1.
        prior: what is believed beforehand.
        better: exchange the roles: H0: the mean of canaries, plus margin, is not above that of incumbents.
    """

    def __init__(self, margin: float = 0.0, *, prior: RobotPrior | None = None, better: bool = False) -> None:
        self.margin, self.better = check_margin("margin", margin), better
        self._prior = prior or RobotPrior()
        self._drop = -0.01 if better and margin == 0.0 else 0.0 if better else self._prior.drop
        self.max_log_e = 0.0
        """Largest ``log_e`` so far, in any stage."""
        self.restart()

    def restart(self, stake: float = 1.0) -> None:
        """Another stage begins: with evidence ``stake``, believing what was believed before the first; ``max_log_e`` is kept.

        The largest evidence of stages whose stakes sum to 1 reaches 1/α with probability <= α under H0.
        """
        prior = self._prior
        self.log_e = math.log(stake)
        """Logarithm of the evidence against H0 in this stage."""
        self._weight = [prior.robots, prior.robots]
        self._mean = [prior.mean, max(0.0, prior.mean - self._drop)]
        self._squares = prior.robots * prior.sd**2
        self._degrees = prior.robots

    def update(self, group: int, x: float, probability: float) -> float:
        """Take one robot in; return ``log_e``.

        Args:
            group: :data:`INCUMBENT` or :data:`CANARY`.
            x: mean over its episodes, in [0, 1].
            probability: with which it is a canary given the past; 0 and 1, when only one sort is left, say nothing.

        Raises:
            InputError: an unknown group, x outside [0, 1], or a probability outside [0, 1] or that says this cannot be.
        """
        if group not in (INCUMBENT, CANARY):
            raise InputError("INPUT_ARM", "group", f"{group!r} is neither {INCUMBENT} nor {CANARY}")
        check_rate("x", x)
        if not 0.0 <= probability <= 1.0 or probability == 1.0 - group:
            raise InputError("INPUT_PROBABILITY", "probability", f"{probability} for a robot of group {group}")
        if 0.0 < probability < 1.0:
            self.log_e += math.log(self._factor(group, x + self.margin * group, probability))
            self.max_log_e = max(self.max_log_e, self.log_e)
        self._learn(group, x)
        return self.log_e

    def _factor(self, group: int, shifted: float, pi: float) -> float:
        incumbent, canary = self._mean[INCUMBENT], self._mean[CANARY] + self.margin
        sign = -1.0 if self.better else 1.0
        gap = sign * (incumbent - canary)
        if gap <= 0.0:
            return 1.0
        centre = (1.0 - pi) * incumbent + pi * canary
        variance = max(self._squares / self._degrees, _SMALLEST_SD**2)
        stake = _BOLDNESS * gap / (variance + gap**2 * (pi**3 + (1.0 - pi) ** 3))
        if self.better:  # the worst: the incumbent's x is 1, or the canary's is 0
            losses = pi * (1.0 - centre), (1.0 - pi) * (centre - self.margin)
        else:  # the incumbent's x is 0, or the canary's is 1
            losses = pi * centre, (1.0 - pi) * (1.0 + self.margin - centre)
        stake = min(stake, _LARGEST_STAKE / max(losses))
        weight = -(1.0 - pi) if group == CANARY else pi
        return 1.0 + sign * stake * weight * (shifted - centre)

    def rejects(self, alpha: float) -> bool:
        """Whether H0 is rejected at level ``alpha`` (for good, whenever it is asked)."""
        return self.max_log_e >= -math.log(check_probability("alpha", alpha))

    def _learn(self, group: int, x: float) -> None:
        before = self._mean[group]
        self._weight[group] += 1.0
        self._mean[group] += (x - before) / self._weight[group]
        self._squares += (x - before) * (x - self._mean[group])
        self._degrees += 1.0
