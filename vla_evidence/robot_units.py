# SPDX-License-Identifier: Apache-2.0
"""Is the canary worse where whole robots run it? An e-process whose unit is the robot.

Episodes of one robot are alike, so where a robot runs one version only, its episodes are no independent units: five robots are
five units, however many episodes they had. The unit is a robot's mean x over a number of episodes. Of a cohort, k of N robots
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
reach 20, and :attr:`RobotCohort.largest_log_e` says so before anything is run. (Evidence that a *margin* is not lost can exceed
it: a canary's success lies above, an incumbent's failure below all that the other group can do.) Nor do few robots show much
about a mean: if the version breaks one robot in ten, five canaries meet none of these in 59 % of rollouts; see
:func:`smallest_drop`.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vla_evidence.assignment import uniform
from vla_evidence.errors import InputError, check_margin, check_probability, check_rate
from vla_evidence.two_sample import CANARY, INCUMBENT

_SMALLEST_SD = 0.02
_BOLDNESS = 1.5
_LARGEST_STAKE = 0.95
_SILENT_IN_A_ROW = 2
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
            if not 0.0 < value <= largest:
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


_HEARD, _SILENT, _IN_A_ROW, _FIRST = range(4)
"""Of a robot's sums: episodes with an outcome, without, the last of these in a row; then of each thing that is judged."""


class RobotUnit(NamedTuple):
    """One robot of a cohort, ready to be judged.

    Attributes:
        group: :data:`INCUMBENT` or :data:`CANARY`.
        means: of each thing over its episodes, one without an outcome a failure; 0 if there was none; if it was given up, the
            rest of its episodes are failures.
        worst: mean of the first thing if the worst is assumed of all episodes that were not heard of: the canary's failed, the
            incumbent's succeeded. A proof of "not worse" may rest on nothing else.
        probability: with which it is a canary, given those before it.
    """

    group: int
    means: list[float]
    worst: float
    probability: float


class RobotCohort:
    """The robots of one stage: collects their outcomes, and hands robots on in an order that tells nothing of their groups.

    The order is that of a salted SHA-256 of the names. A robot is handed on when it has its episodes, or was given up (silent
    twice in a row), and all before it were: an order of finishing would not do, for a canary that breaks robots finishes first.
    When the stage's time is over all others are, with what they have by then. So each robot has one x, whenever somebody looks;
    what comes after that counts no more.

    Args:
        groups: group by robot. The canaries must have been drawn at random.
        episodes: a robot's mean is over this many; later ones are ignored.
        salt: of this experiment and stage, other than the one that the canaries were drawn with.

    Raises:
        InputError: an unknown group, no robot, or no episodes.
    """

    def __init__(self, groups: Mapping[str, int], episodes: int, salt: str) -> None:
        if not groups or not set(groups.values()) <= {INCUMBENT, CANARY}:
            raise InputError("INPUT_ARM", "groups", f"no robots, or some are neither {INCUMBENT} nor {CANARY}")
        if episodes < 1:
            raise InputError("INPUT_COUNT", "episodes", f"{episodes} is not positive")
        self.groups, self.episodes = {robot: int(group) for robot, group in groups.items()}, episodes
        self._order = sorted(groups, key=lambda robot: (uniform(f"{salt}/order", robot), robot))
        self._sums: dict[str, list[float]] = {}
        self._taken, self._canaries_left = 0, self.canaries

    @property
    def canaries(self) -> int:
        """How many of the robots are."""
        return sum(self.groups.values())

    @property
    def largest_log_e(self) -> float:
        """Logarithm of the number of ways to draw this cohort: no evidence of harm can exceed it."""
        n, k = len(self.groups), self.canaries
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    def add(self, robot: str, *ys: float) -> None:
        """Take one episode in: a value in [0, 1] for each thing that is judged, always as many.

        Raises:
            InputError: a robot that is not of the cohort, or a value outside [0, 1].
        """
        for y in ys:
            check_rate("y", y)
        sums = self._open_sums(robot, len(ys))
        if sums is not None:
            sums[_HEARD] += 1.0
            sums[_IN_A_ROW] = 0.0
            for index, value in enumerate(ys, start=_FIRST):
                sums[index] += value

    def add_silent(self, robot: str, things: int) -> None:
        """An episode's outcome was never heard of: it has failed. After two in a row the robot is given up.

        Raises:
            InputError: a robot that is not of the cohort.
        """
        sums = self._open_sums(robot, things)
        if sums is not None:
            sums[_SILENT] += 1.0
            sums[_IN_A_ROW] += 1.0

    def _open_sums(self, robot: str, things: int) -> list[float] | None:
        """Return what to add to; None if the robot has its episodes, was given up, or the time is over."""
        if robot not in self.groups:
            raise InputError("INPUT_ARM", "robot", f"{robot!r} is not of this cohort")
        if not self.waiting:
            return None
        sums = self._sums.setdefault(robot, [0.0] * (_FIRST + things))
        return None if self._complete(sums) else sums

    def _complete(self, sums: Sequence[float]) -> bool:
        return sums[_HEARD] + sums[_SILENT] >= self.episodes or sums[_IN_A_ROW] >= _SILENT_IN_A_ROW

    def ready(self, things: int, *, final: bool = False) -> Iterator[RobotUnit]:
        """Yield the robots whose turn it is, once each.

        ``final``: the stage's time is over, by the clock, so all others come, too. No other time will do: whoever chose it might
        have seen how the robots look.
        """
        while self._taken < len(self._order):
            robot = self._order[self._taken]
            sums = self._sums.get(robot, [0.0] * (_FIRST + things))
            if not (final or self._complete(sums)):
                return
            group, probability = self.groups[robot], self._canaries_left / self.waiting
            self._taken += 1
            self._canaries_left -= group
            yield self._unit(group, sums, probability)

    def _unit(self, group: int, sums: Sequence[float], probability: float) -> RobotUnit:
        heard, silent = sums[_HEARD], sums[_SILENT]
        gone = sums[_IN_A_ROW] >= _SILENT_IN_A_ROW
        owed = float(self.episodes) if gone else max(heard + silent, 1.0)
        unheard = self.episodes - heard if group == INCUMBENT else 0.0
        worst = (sums[_FIRST] + unheard) / self.episodes
        return RobotUnit(group, [min(1.0, value / owed) for value in sums[_FIRST:]], min(1.0, worst), probability)

    def short(self) -> tuple[int, int]:
        """Return how many robots of the incumbent and of the canary have not all their episodes (those given up included)."""
        heard = {robot: sums[_HEARD] for robot, sums in self._sums.items()}
        groups = [group for robot, group in self.groups.items() if heard.get(robot, 0.0) < self.episodes]
        return groups.count(INCUMBENT), groups.count(CANARY)

    def unheard_of(self) -> tuple[bool, bool]:
        """Return whether no episode of any robot of the incumbent, of the canary, was ever heard of."""
        heard = {self.groups[robot] for robot, sums in self._sums.items() if sums[_HEARD] > 0.0}
        return INCUMBENT not in heard, CANARY not in heard

    @property
    def waiting(self) -> int:
        """Robots not handed on yet; if none is left, the cohort is closed."""
        return len(self._order) - self._taken

    def counts(self) -> list[list[float]]:
        """Return, of the incumbent and of the canary, (successes, episodes heard of, all episodes) that robots are judged by."""
        counts = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        for robot, sums in self._sums.items():
            for index, value in enumerate((sums[_FIRST], sums[_HEARD], sums[_HEARD] + sums[_SILENT])):
                counts[self.groups[robot]][index] += value
        return counts

    def to_json(self) -> dict[str, Any]:
        """Return the cohort for :meth:`from_json`; who was handed on follows from it."""
        return {"groups": dict(self.groups), "sums": {robot: list(sums) for robot, sums in self._sums.items()}}

    @staticmethod
    def from_json(document: Mapping[str, Any], episodes: int, salt: str, things: int) -> RobotCohort:
        """Read what :meth:`to_json` wrote, of so many episodes, this salt and number of things; nobody is handed on yet.

        Raises:
            InputError, KeyError, TypeError, ValueError, AttributeError: it did not write this.
        """
        groups = document["groups"]
        if not all(type(group) is int for group in groups.values()):
            raise InputError("INPUT_ARM", "groups", "some are no numbers")
        cohort = RobotCohort(groups, episodes, salt)
        for robot, sums in document["sums"].items():
            if robot not in cohort.groups or len(sums) != _FIRST + things or not cohort._possible(sums):
                raise InputError("INPUT_VALUE", "cohort", f"{robot!r}: {sums!r} are no sums of a robot")
            cohort._sums[robot] = [float(value) for value in sums]
        return cohort

    def _possible(self, sums: Sequence[float]) -> bool:
        """Whether episodes can give these sums: no silence but the last was as long as a robot is given up for."""
        if not all(type(value) in (int, float) and 0.0 <= value <= self.episodes for value in sums):
            return False
        heard, silent, in_a_row, *values = sums
        return (
            all(float(count).is_integer() for count in (heard, silent, in_a_row))
            and 1.0 <= heard + silent <= self.episodes
            and in_a_row <= min(silent, _SILENT_IN_A_ROW)
            and silent - in_a_row <= heard
            and max(values) <= heard
        )
