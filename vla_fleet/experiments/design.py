# SPDX-License-Identifier: Apache-2.0
"""What is fixed before an experiment begins: who takes part, what is asked, when it stops; and what to expect of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from vla_evidence import EvidenceError
from vla_evidence.ab.pairs import EPISODES_OF_A_DRAWN_PAIR
from vla_evidence.assignment import A, B, cohort
from vla_evidence.planning import plan, sample_size
from vla_evidence.planning.stopping import sign_test_pairs
from vla_evidence.sequential.randomisation_test import ICC
from vla_evidence.sequential.sign_test import MAX_PAIRS
from vla_evidence.sequential.spending import linear
from vla_fleet.errors import ConflictError, InputError
from vla_fleet.protocol import Name

Reference = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Word = Annotated[str, StringConstraints(max_length=64)]
DAY_S = 86400.0
GONE_S = 3600.0
"""A pair waits no longer for its second episode; pairs behind it wait so long at most."""
DEADLINE_S = 60.0
"""After an outcome that nobody knows, for so long: its episode has failed. Episodes are heard of when they end."""
_RUNS, _SEED, _SIMULATED_PAIRS = 4000, 0, 400
_LOOKS = 20
"""Of the test by robot; each robot runs an episode for each at least."""


class Unit(str, Enum):
    """What is drawn."""

    ROBOT = "robot"
    """Half of the robots run B."""
    EPISODE = "episode"
    """Each robot holds both versions and draws each episode."""


class Design(BaseModel):
    """What a person asks. Nothing of it changes while the experiment runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    a: Reference
    """The control: ``name@version``, ``name@alias`` or ``name``."""
    b: Reference
    """The candidate."""
    unit: Unit
    robots: Annotated[list[Name], Field(max_length=10_000)] = []
    group: Word = ""
    tag: Word = ""
    difference: Annotated[float, Field(ge=0.001, lt=1)] = 0.05
    """In success rate, that is worth finding."""
    rate: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Success rate of A; None: what these robots did in the last two weeks."""
    per_day: Annotated[float | None, Field(gt=0, le=100_000)] = None
    """Episodes of a robot a day; None: as they did."""
    alpha: Annotated[float, Field(ge=0.001, lt=0.5)] = 0.05
    """P(a difference is claimed that is not there)."""
    power: Annotated[float, Field(gt=0.5, le=0.99)] = 0.8
    """P(the difference is found)."""
    max_days: Annotated[float, Field(gt=0, le=365)] = 14.0
    """After which it ends, decided or not."""

    def invites(self, group: str, tags: Sequence[str]) -> bool:
        """Whether a robot of this group, with these tags, is meant without being named."""
        return bool(self.group or self.tag) and self.group in ("", group) and (not self.tag or self.tag in tags)


class Plan(BaseModel):
    """What to expect, before anything runs."""

    robots: int
    rate: float
    """Of A; ``per_day``: episodes of a robot."""
    per_day: float
    at_most: int
    """Pairs of episodes (by episode) or episodes (by robot) after which the test ends."""
    days: float | None
    """To a decision: mean of the sequential test, or the design with one look (by robot). None: never."""
    latest_days: float
    """When all that was planned is in, or ``max_days``."""
    sentences: list[str]


def plan_for(design: Design, robots: int, rate: float, per_day: float) -> Plan:
    """Say how long a decision takes in this fleet. It simulates, up to some seconds.

    Raises:
        FleetError: ROBOTS_TOO_FEW, DIFFERENCE_TOO_SMALL, or the code of a figure that cannot be.
    """
    better = rate + design.difference
    other = better if better < 1.0 else rate - design.difference
    by_unit = _by_episode if design.unit is Unit.EPISODE else _by_robot
    try:
        at_most, days, sentences = by_unit(design, robots, (rate, other), per_day)
    except EvidenceError as e:
        raise InputError(e.code, str(e)) from e
    unit_episodes = EPISODES_OF_A_DRAWN_PAIR if design.unit is Unit.EPISODE else 1.0
    latest = at_most * unit_episodes / (robots * per_day)
    if days is None or latest > design.max_days:
        sentences.append(f"It ends after {design.max_days:g} days, decided or not.")
    if days is None or days > design.max_days:
        sentences.append("A difference of this size will probably not be shown by then.")
    return Plan(
        robots=robots, rate=rate, per_day=per_day, at_most=at_most, days=days, latest_days=min(latest, design.max_days),
        sentences=sentences,
    )  # fmt: skip


_Found = tuple[int, float | None, list[str]]
"""At most so many pairs or episodes, days to a decision, sentences."""


def _by_episode(design: Design, robots: int, rates: tuple[float, float], per_day: float) -> _Found:
    pairs, mean, power = _simulated(rates, design.alpha, design.power)
    if pairs > MAX_PAIRS:
        text = (
            f"a difference of {design.difference:g} takes {pairs:,} pairs of episodes; at most {MAX_PAIRS:,} are judged"
        )
        raise InputError("DIFFERENCE_TOO_SMALL", text)
    a_day = robots * per_day / EPISODES_OF_A_DRAWN_PAIR
    sentence = (
        f"To tell {rates[0]:.1%} from {rates[1]:.1%} (two-sided α {design.alpha:g}, power {power:.0%}) on {robots} robots that "
        f"draw each episode: {mean * EPISODES_OF_A_DRAWN_PAIR:,.0f} episodes on average ({mean / a_day:,.1f} days at "
        f"{per_day:,.1f} a robot a day), at most {pairs * EPISODES_OF_A_DRAWN_PAIR:,.0f} in {pairs:,} pairs "
        f"({pairs / a_day:,.1f} days)."
    )
    return pairs, mean / a_day, [sentence]


@lru_cache(maxsize=64)
def _simulated(rates: tuple[float, float], alpha: float, power: float) -> tuple[int, float, float]:
    """Return the pairs after which the test ends, those that it takes on average, and its power.

    A small difference is not simulated itself, for that takes long: a larger one is, and its pairs are multiplied. The
    score's walk is nearly a Brownian motion there, so what counts is difference times root of pairs.
    """
    needed = sample_size.two_proportions(*rates, alpha=alpha, power=power)
    larger = (rates[1] - rates[0]) * math.sqrt(max(1.0, needed / _SIMULATED_PAIRS))
    other = rates[0] + larger if 0.0 < rates[0] + larger < 1.0 else rates[0] - larger
    first = sample_size.two_proportions(rates[0], other, alpha=alpha, power=power)
    stopping = sign_test_pairs(
        rates[0], other, alpha=alpha, power=power, first=math.ceil(first), runs=_RUNS, seed=_SEED, spending=linear
    )
    factor = needed / first
    return math.ceil(stopping.horizon * factor), stopping.mean[0] * factor, stopping.decided[0]


def _by_robot(design: Design, robots: int, rates: tuple[float, float], per_day: float) -> _Found:
    if not _can_show(robots, design.alpha):
        enough = next(n for n in range(2, 64) if _can_show(n, design.alpha))
        text = f"{robots} robots, one version on each, cannot show any difference: take {enough} or more, or draw by episode"
        raise ConflictError("ROBOTS_TOO_FEW", text)
    question = plan.Question(plan.Fleet(robots, per_day, "robot", ICC), design.alpha, design.power, runs=0)
    found = plan.plan_ab(*rates, question)
    capacity = max(1, math.floor(design.max_days * per_day * robots))
    if math.isinf(found.fixed["episodes"]):
        return capacity, None, found.sentences
    looks = (
        f"The test looks {_LOOKS} times and may end at each look; it needs somewhat more episodes than with one look."
    )
    return max(math.ceil(found.fixed["per_robot"]), _LOOKS) * robots, found.fixed["days"], [*found.sentences, looks]


def _can_show(robots: int, alpha: float) -> bool:
    """Whether the rarest result, one of all ways to choose half of the robots, is rare enough."""
    return 1.0 / math.comb(robots, robots // 2) <= alpha / 2.0


def judge_for(design: Design, found: Plan, experiment: str, robots: Sequence[str]) -> tuple[str, str, dict[str, Any]]:
    """Return kind, experiment and settings of the judge (:mod:`vla_evidence.log.judgements`)."""
    shared = {"alpha": design.alpha, "spending": "linear", "deadline_s": DEADLINE_S}
    if design.unit is Unit.EPISODE:
        return "ab_paired", experiment, {**shared, "max_pairs": found.at_most, "gone_s": GONE_S, "drawn_by_robot": True}
    return (
        "ab_robots",
        experiment,
        {**shared, "planned_episodes": found.at_most, "looks": _LOOKS, "arms": arms(experiment, robots)},
    )


def arms(experiment: str, robots: Sequence[str]) -> dict[str, int]:
    """Return the version of each robot: half of them, rounded down, run B."""
    treated = set(cohort(experiment, robots, 0.5))
    return {robot: B if robot in treated else A for robot in sorted(robots)}
