# SPDX-License-Identifier: Apache-2.0
"""What a plan consists of: a fleet, designs with their figures, and an answer in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vla_evidence.analysis import Bar, no_bar
from vla_evidence.errors import InputError, check_probability, check_rate
from vla_evidence.planning import sample_size
from vla_evidence.planning.stopping import Stopping, check_runs
from vla_evidence.planning.stopping_robots import cohort_times
from vla_evidence.simulate.fleet import FleetModel
from vla_evidence.tables import table

Unit = Literal["episode", "robot"]
_LATEST = 0.9
LEAST_SHARE = 1e-6


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
        FleetModel(self.robots)
        if not 1e-6 <= self.per_day <= 1e9:
            raise InputError("INPUT_VALUE", "per_day", f"{self.per_day} episodes a day are none, or never end")
        if self.unit not in ("episode", "robot"):
            raise InputError("INPUT_VALUE", "unit", f"{self.unit!r} is neither episode nor robot")
        if self.unit == "robot" and self.robots < 2:
            raise InputError("INPUT_COUNT", "robots", "one robot cannot be in both arms: assign by episode")
        check_rate("icc", self.icc)

    def arm(self, share: float) -> int:
        """Return how many whole robots the treated arm gets: as a stage does, at least one, and one is left over."""
        return max(1, min(math.floor(share * self.robots + 1e-9), self.robots - 1))


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

    @property
    def simulated(self) -> bool:
        """Whether these are figures of a simulation, which carry error."""
        return self.power[1] > 0.0


@dataclass(frozen=True)
class Plan:
    """An answer in a sentence, and its figures."""

    sentence: str
    rows: list[Row]
    settings: Mapping[str, float | int | str | None] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Simulation:
    """How the sequential designs are simulated: with so many runs from this seed. 0 runs: not at all."""

    runs: int = 1000
    seed: int = 0
    bar: Bar = no_bar

    def __post_init__(self) -> None:
        check_runs(self.runs or 2, self.seed)

    def rng(self) -> np.random.Generator:
        """Return the source of chance, the same each time."""
        return np.random.default_rng(self.seed)


def fixed_row(method: str, independent: float, share: float, power: float, fleet: Fleet, days: float | None) -> Row:
    """Return the row of a design that needs ``independent`` independent episodes in the treated arm."""
    if not LEAST_SHARE <= check_probability("share", share) <= 1.0 - LEAST_SHARE:
        raise InputError("INPUT_PROBABILITY", "share", f"{share} leaves one group next to nothing")
    if fleet.unit == "robot":
        each = sample_size.episodes_per_robot(independent, fleet.arm(share), fleet.icc)
        each = math.ceil(each - 1e-9) if math.isfinite(each) else math.inf
        episodes, per_robot = each * fleet.arm(share), each
    else:
        episodes = math.ceil(independent - 1e-9)
        per_robot = episodes / share / fleet.robots
    robots, taken = _robots(independent, share, fleet, days), per_robot / fleet.per_day
    return Row(method, episodes, 0.0, episodes, (power, 0.0), per_robot, taken, taken, robots)


def sequential_row(method: str, stopping: Stopping, share: float, fleet: Fleet, days: float | None) -> Row:
    """Return the row of a simulated design."""
    mean, error = stopping.mean
    latest = min(stopping.quantile(_LATEST), stopping.horizon)
    if fleet.unit == "robot":
        share, robots = fleet.arm(share) / fleet.robots, None
    else:
        robots = _robots(latest, share, fleet, days)
    per_robot = mean / share / fleet.robots
    per_day = fleet.robots * fleet.per_day * share
    return Row(method, mean, error, latest, stopping.decided, per_robot, mean / per_day, latest / per_day, robots)


def cohort_row(
    incumbent: float, canary: float, fleet: Fleet, share: float, alpha: float, fixed: Row, days: float | None,
    simulation: Simulation, *, margin: float = 0.0, better: bool = False,
) -> Row:  # fmt: skip
    """Return the row of the e-process whose unit is the robot, for one stage that has ``alpha`` to itself."""
    treated, each = fleet.arm(share), planned_each(fixed, fleet, days)
    with simulation.bar("e-process of robots", simulation.runs) as tick:
        stopping = cohort_times(
            incumbent, canary, FleetModel(fleet.robots, fleet.icc), treated, each, margin=margin, better=better,
            alpha=alpha, runs=simulation.runs, rng=simulation.rng(), progress=tick,
        )  # fmt: skip
    ways = math.comb(fleet.robots, treated)
    method = f"sequential, e-process of {treated} and {fleet.robots - treated} robots, {each:,} each"
    if ways < 1.0 / alpha and not (better and margin):  # the bound on evidence holds for harm, and without a margin
        method += f": only {ways} ways to draw them, it can never decide"
    return sequential_row(method, stopping, share, fleet, days)


def planned_each(fixed: Row, fleet: Fleet, days: float | None) -> int:
    """Return episodes on each robot: what the fixed design needs; if that is infinite, what there is time for (one day)."""
    return math.ceil(fixed.per_robot) if math.isfinite(fixed.per_robot) else max(1, int((days or 1.0) * fleet.per_day))


def _robots(independent: float, share: float, fleet: Fleet, days: float | None) -> int | None:
    """Return how many robots are done within ``days``, both arms together."""
    if days is None:
        return None
    each = days * fleet.per_day
    if not (1.0 <= each < math.inf and math.isfinite(days)):
        raise InputError("INPUT_VALUE", "days", f"in {days} days a robot does not finish one episode, or has no end")
    if fleet.unit == "episode":
        return math.ceil(independent / share / each - 1e-9)
    treated = sample_size.robots_needed(independent, fleet.icc, each)
    return math.ceil(treated / share - 1e-9)


def answer(
    question: str,
    rows: list[Row],
    settings: Mapping[str, float | int | str | None],
    fleet: Fleet,
    share: float,
    days: float | None,
    note: str = "",
) -> Plan:
    """Return the plan of these rows, the first of them fixed, the last sequential if any is; ``note``: what else to know."""
    fixed, last = rows[0], rows[-1]
    settings = {**settings, **vars(fleet), "days": days}
    if math.isinf(fixed.episodes):
        robots = fleet.arm(share)
        sentence = (
            f"{question}, {robots} whole robot{'s' * (robots != 1)} in the treated arm never suffice at an intraclass "
            f"correlation of {fleet.icc:g}, however long they run: take more robots, or both versions on each robot, assigned "
            "by episode."
        )
    else:
        sentence = (
            f"{question}, one look at the end needs {fixed.episodes:,.0f} episodes of the treated arm: {fixed.per_robot:,.1f} "
            f"episodes (both arms) on each of {fleet.robots} robots, {fixed.days:,.1f} days at {fleet.per_day:g} a day"
        )
        sentence += f"; {_sequential_words(last, fleet)}." if last.simulated else "."
    if fixed.robots is not None:
        sentence += f" To be done within {days:g} day{'s' * (days != 1)}: {fixed.robots} robots by one look at the end"
        both = last.simulated and last.robots is not None
        sentence += f", {last.robots} by the sequential test ({_LATEST:.0%} of all cases)." if both else "."
    return Plan(sentence, rows, settings, note)


def _sequential_words(row: Row, fleet: Fleet) -> str:
    if fleet.unit == "robot":
        return f"by then the sequential test of robots has decided with probability {row.power[0]:.2f} ± {row.power[1]:.2f}"
    return (
        f"the sequential test needs {row.episodes:,.0f} ± {row.error:,.0f} on average, {row.days:,.1f} days, and is done after "
        f"{row.latest_days:,.1f} days in {_LATEST:.0%} of all cases"
    )


def describe(plan: Plan) -> str:
    """Return a plan for people: the sentence, and a table of the designs."""
    heads = ["design", "episodes, treated arm", "90 % done by", "power", "per robot", "days", "90 % within"]
    within = any(row.robots is not None for row in plan.rows)
    cells = []
    for row in plan.rows:
        power = f"{row.power[0]:.2f}" + (f" ± {row.power[1]:.2f}" if row.simulated else "")
        episodes = _number(row.episodes) + (f" ± {row.error:,.0f}" if row.error else "")
        line = [row.method, episodes, _number(row.latest), power, _number(row.per_robot)]
        line += [f"{row.days:,.1f}" if math.isfinite(row.days) else "never"]
        line += [f"{row.latest_days:,.1f}" if math.isfinite(row.latest_days) else "never"]
        cells.append(line + ([f"{row.robots:,}" if row.robots is not None else "-"] if within else []))
    return f"{plan.sentence}\n\n" + table("", heads + (["robots for it"] if within else []), cells, plan.note)


def _number(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "never"
