# SPDX-License-Identifier: Apache-2.0
"""How many episodes, how many days, how many robots? Fixed designs by formula, sequential ones by simulating the judges.

Three questions: does B differ from A (:func:`plan_ab`), is the canary no more than a margin worse (:func:`plan_noninferiority`),
how soon is a bad canary found (:func:`plan_detect`). Each answer has the design with one look at the end (two formulas that
should agree) and the sequential one that the judges of this package use, simulated with a seed and its Monte-Carlo error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vla_evidence import sample_size
from vla_evidence.analysis import Bar, no_bar
from vla_evidence.errors import InputError, check_probability, check_rate
from vla_evidence.stopping import Stopping, detection_times, exclusion_times, sign_test_pairs
from vla_evidence.tables import table

Unit = Literal["episode", "robot"]
_LATEST = 0.9
_HORIZON = 4.0
"""Sequential tests without an end of their own are simulated for so many times (harm: twice that) the fixed design's size."""


@dataclass(frozen=True)
class Fleet:
    """Who does the work.

    Attributes:
        robots: in the experiment, both arms together.
        per_day: episodes (tasks) that one robot does a day.
        unit: ``episode``: each episode is assigned by itself, so every robot holds both versions; ``robot``: whole robots are.
        icc: intraclass correlation of outcomes within a robot; it costs episodes only if whole robots are assigned.
    """

    robots: int
    per_day: float
    unit: Unit = "episode"
    icc: float = 0.0

    def __post_init__(self) -> None:
        if self.robots < 1:
            raise InputError("INPUT_COUNT", "robots", f"{self.robots} is less than one")
        if not (math.isfinite(self.per_day) and self.per_day > 0.0):
            raise InputError("INPUT_VALUE", "per_day", f"{self.per_day} episodes a day never end")
        if self.unit not in ("episode", "robot"):
            raise InputError("INPUT_VALUE", "unit", f"{self.unit!r} is neither episode nor robot")
        check_rate("icc", self.icc)

    def arm(self, share: float) -> int:
        """Return how many whole robots the treated arm gets: at least one, and one is left over."""
        return max(1, min(round(share * self.robots), self.robots - 1))


@dataclass(frozen=True)
class Row:
    """One design's answer.

    Attributes:
        method: of the test.
        episodes: of the treated arm: what a fixed design needs, or a sequential one takes on average; infinite: never.
        error: its Monte-Carlo standard error; 0: a formula.
        latest: after so many episodes 90 % of the runs have decided; a fixed design takes as many always.
        power: of the test, and its Monte-Carlo standard error.
        per_robot: episodes that each robot of the fleet does meanwhile, both versions together.
        days: that this takes.
        latest_days: that ``latest`` takes.
        robots: that the whole experiment needs to be over within the days asked for; None: not asked, or never.
    """

    method: str
    episodes: float
    error: float
    latest: float
    power: tuple[float, float]
    per_robot: float
    days: float
    latest_days: float
    robots: int | None = None


@dataclass(frozen=True)
class Plan:
    """An answer in a sentence, and its figures."""

    sentence: str
    rows: list[Row]
    settings: Mapping[str, float | int | str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Simulation:
    """How the sequential designs are simulated: with so many runs from this seed. 0 runs: not at all."""

    runs: int = 1000
    seed: int = 0
    bar: Bar = no_bar

    def rng(self) -> np.random.Generator:
        """Return the source of chance, the same each time."""
        return np.random.default_rng(self.seed)


def plan_ab(
    rate_a: float,
    rate_b: float,
    fleet: Fleet,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    days: float | None = None,
    simulation: Simulation | None = None,
) -> Plan:
    """Plan an A/B test: two-sided, half of the episodes (or robots) each.

    Args:
        rate_a, rate_b: success rates that shall be told apart.
        fleet: who does the work.
        alpha, power: error rates.
        days: also say how many robots finish within so many days.
        simulation: of the sequential design (the exact sign test on pairs; for episodes as units).

    Raises:
        InputError: what cannot be.
        EvidenceError: ANALYSIS_MISSING.
    """
    simulation = simulation or Simulation()
    if fleet.robots < 2 and fleet.unit == "robot":
        raise InputError("INPUT_COUNT", "robots", "one robot cannot be in both arms: assign by episode")
    normal = sample_size.two_proportions(rate_a, rate_b, alpha=alpha, power=power)
    arcsine = sample_size.two_proportions_arcsine(rate_a, rate_b, alpha=alpha, power=power)
    question = f"{rate_a:.1%} from {rate_b:.1%}"
    rows = [
        _fixed("one look, normal formula", normal, 0.5, power, fleet, days),
        _fixed("one look, arcsine (statsmodels)", arcsine, 0.5, power, fleet, days),
    ]
    if simulation.runs and fleet.unit == "episode":
        stopping = sign_test_pairs(
            rate_a, rate_b, alpha=alpha, power=power, first=math.ceil(normal), runs=simulation.runs, seed=simulation.seed,
            bar=simulation.bar,
        )  # fmt: skip
        method = f"sequential, exact sign test, at most {stopping.horizon:,.0f} pairs"
        rows.append(_sequential(method, stopping, 0.5, fleet, days))
    settings = {"rate_a": rate_a, "rate_b": rate_b, "alpha": alpha, "power": power}
    return _plan(f"To tell {question} (two-sided α {alpha:g}, power {power:.0%})", rows, settings, fleet, 0.5, days)


def plan_noninferiority(
    rate: float,
    margin: float,
    fleet: Fleet,
    *,
    share: float = 0.5,
    alpha: float = 0.05,
    power: float = 0.8,
    days: float | None = None,
    simulation: Simulation | None = None,
) -> Plan:
    """Plan to show that a version that is as good as the other is at most ``margin`` worse (one-sided).

    Args:
        rate: success rate of both.
        margin: drop that is to be excluded.
        fleet, alpha, power, days, simulation: as for :func:`plan_ab`.
        share: of the episodes (or robots) that the new version gets.

    Raises:
        InputError: what cannot be.
    """
    simulation = simulation or Simulation()
    size = sample_size.non_inferiority(rate, margin, alpha=alpha, power=power, share=share)
    rows = [_fixed("one look, normal formula", size, share, power, fleet, days)]
    if simulation.runs and fleet.unit == "episode":
        with simulation.bar("e-process of non-inferiority", simulation.runs) as tick:
            stopping = exclusion_times(
                rate, rate, share, margin, alpha=alpha, horizon=math.ceil(_HORIZON * size), runs=simulation.runs,
                rng=simulation.rng(), progress=tick,
            )  # fmt: skip
        rows.append(_sequential("sequential, e-process of non-inferiority", stopping, share, fleet, days))
    settings = {"rate": rate, "margin": margin, "share": share, "alpha": alpha, "power": power}
    question = f"To show at {rate:.1%} that a drop of {margin:.1%} is excluded (α {alpha:g}, power {power:.0%})"
    return _plan(question, rows, settings, fleet, share, days)


def plan_detect(
    incumbent: float,
    canary: float,
    fleet: Fleet,
    *,
    share: float = 0.05,
    alpha: float = 0.05,
    power: float = 0.8,
    days: float | None = None,
    simulation: Simulation | None = None,
) -> Plan:
    """Plan how soon a canary that is worse is found (one-sided).

    Args:
        incumbent, canary: success rates, the canary's the lower one.
        fleet, alpha, power, days, simulation: as for :func:`plan_ab`.
        share: of the episodes (or robots) that the canary gets.

    Raises:
        InputError: what cannot be, or a canary that is not worse.
        EvidenceError: ANALYSIS_MISSING.
    """
    simulation = simulation or Simulation()
    if canary >= incumbent:
        raise InputError("INPUT_RATE", "canary", f"{canary} is not below the incumbent's {incumbent}")
    same = {"alpha": alpha, "power": power, "share": share}
    normal = sample_size.two_proportions(incumbent, canary, sides=1, **same)
    arcsine = sample_size.two_proportions_arcsine(incumbent, canary, sides=1, **same)
    rows = [
        _fixed("one look, normal formula", normal, share, power, fleet, days),
        _fixed("one look, arcsine (statsmodels)", arcsine, share, power, fleet, days),
    ]
    if simulation.runs and fleet.unit == "episode":
        with simulation.bar("e-process of the canary", simulation.runs) as tick:
            stopping = detection_times(
                incumbent, canary, share, alpha=alpha, horizon=math.ceil(2 * _HORIZON * normal), runs=simulation.runs,
                rng=simulation.rng(), progress=tick,
            )  # fmt: skip
        rows.append(_sequential("sequential, e-process, looks at every episode", stopping, share, fleet, days))
    settings: dict[str, float | int | str | None] = {"incumbent": incumbent, "canary": canary, **same}
    question = f"To find a drop from {incumbent:.1%} to {canary:.1%} (α {alpha:g}, power {power:.0%})"
    return _plan(question, rows, settings, fleet, share, days)


def _fixed(method: str, independent: float, share: float, power: float, fleet: Fleet, days: float | None) -> Row:
    """Return the row of a design that needs ``independent`` independent episodes in the treated arm."""
    check_probability("share", share)
    if fleet.unit == "robot":
        each = sample_size.episodes_per_robot(independent, fleet.arm(share), fleet.icc)
        each = math.ceil(each - 1e-9) if math.isfinite(each) else math.inf
        episodes, per_robot = each * fleet.arm(share), each
    else:
        episodes = math.ceil(independent - 1e-9)
        per_robot = episodes / share / fleet.robots
    robots, taken = _robots(independent, share, fleet, days), per_robot / fleet.per_day
    return Row(method, episodes, 0.0, episodes, (power, 0.0), per_robot, taken, taken, robots)


def _sequential(method: str, stopping: Stopping, share: float, fleet: Fleet, days: float | None) -> Row:
    mean, error = stopping.mean
    latest = min(stopping.quantile(_LATEST), stopping.horizon)
    per_robot = mean / share / fleet.robots
    per_day = fleet.robots * fleet.per_day * share
    robots = _robots(latest, share, fleet, days)
    return Row(method, mean, error, latest, stopping.decided, per_robot, mean / per_day, latest / per_day, robots)


def _robots(independent: float, share: float, fleet: Fleet, days: float | None) -> int | None:
    """Return how many robots are done within ``days``, both arms together."""
    if days is None:
        return None
    each = days * fleet.per_day
    if not each >= 1.0:
        raise InputError("INPUT_VALUE", "days", f"in {days} days a robot does not finish one episode")
    if fleet.unit == "episode":
        return math.ceil(independent / share / each - 1e-9)
    treated = sample_size.robots_needed(independent, fleet.icc, each)
    return math.ceil(treated / share - 1e-9)


def _plan(
    question: str,
    rows: list[Row],
    settings: Mapping[str, float | int | str | None],
    fleet: Fleet,
    share: float,
    days: float | None,
) -> Plan:
    first, last = rows[0], rows[-1]
    settings = {**settings, **vars(fleet), "days": days}
    if math.isinf(first.episodes):
        return Plan(
            f"{question}, {fleet.arm(share)} whole robots in the treated arm never suffice at an intraclass correlation of "
            f"{fleet.icc:g}, however long they run: take more robots, or both versions on each robot, assigned by episode.",
            rows,
            settings,
        )
    sentence = (
        f"{question}, one look at the end needs {first.episodes:,.0f} episodes of the treated arm: {first.per_robot:,.1f} "
        f"episodes (both arms) on each of {fleet.robots} robots, {first.days:,.1f} days at {fleet.per_day:g} a day"
    )
    if last.error:
        sentence += (
            f"; the sequential test needs {last.episodes:,.0f} ± {last.error:,.0f} on average, {last.days:,.1f} days, and is "
            f"done after {last.latest_days:,.1f} days in {_LATEST:.0%} of all cases"
        )
    sentence += "."
    if first.robots is not None:
        sentence += f" To be done within {days:g} day{'s' * (days != 1)}: {first.robots} robots by one look at the end"
        sentence += f", {last.robots} by the sequential test ({_LATEST:.0%} of all cases)." if last.error else "."
    return Plan(sentence, rows, settings)


def describe(plan: Plan) -> str:
    """Return a plan for people: the sentence, and a table of the designs."""
    heads = ["design", "episodes, treated arm", "90 % done by", "power", "per robot", "days", "90 % within"]
    within = any(row.robots is not None for row in plan.rows)
    cells = []
    for row in plan.rows:
        power = f"{row.power[0]:.2f}" + (f" ± {row.power[1]:.2f}" if row.error else "")
        episodes = _number(row.episodes) + (f" ± {row.error:,.0f}" if row.error else "")
        line = [row.method, episodes, _number(row.latest), power, _number(row.per_robot)]
        line += [f"{row.days:,.1f}" if math.isfinite(row.days) else "never"]
        line += [f"{row.latest_days:,.1f}" if math.isfinite(row.latest_days) else "never"]
        cells.append(line + ([f"{row.robots:,}" if row.robots is not None else "-"] if within else []))
    return f"{plan.sentence}\n\n" + table("", heads + (["robots for it"] if within else []), cells)


def _number(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "never"
