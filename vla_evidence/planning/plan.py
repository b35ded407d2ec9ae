# SPDX-License-Identifier: Apache-2.0
"""How many episodes, how many days, how many robots? Fixed designs by formula, sequential ones by simulating the tests.

Three questions: does B differ from A (:func:`plan_ab`), is the canary worse by less than a margin
(:func:`plan_noninferiority`), how soon is a bad canary found (:func:`plan_detect`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vla_evidence.analysis import Bar, no_bar
from vla_evidence.errors import InputError, check_number, check_probability, check_rate
from vla_evidence.planning import sample_size
from vla_evidence.planning.stopping import (
    Stopping,
    TooLargeError,
    check_runs,
    detection_times,
    share_and_error,
    sign_test_pairs,
)
from vla_evidence.simulate.fleet import FleetModel
from vla_evidence.tables import plural, share_text, table

Unit = Literal["episode", "robot"]
_LATEST = 0.9
_HORIZON = 8.0
"""The search for harm, which has no end of its own, is simulated for so many times the fixed design's size."""
_EPISODES, _LEAST_RUNS = 5e7, 20
"""A small drop takes so many episodes that fewer runs than asked for are simulated: about so many episodes in all."""


@dataclass(frozen=True)
class Fleet:
    """Who does the work.

    Attributes:
        robots: in the experiment, both versions together.
        per_day: episodes (tasks) that one robot does a day.
        unit: ``episode``: each episode is drawn, so every robot holds both versions; ``robot``: whole robots are.
        icc: intraclass correlation of outcomes within a robot; it costs episodes only if whole robots are drawn.
    """

    robots: int
    per_day: float
    unit: Unit = "episode"
    icc: float = 0.0

    def __post_init__(self) -> None:
        FleetModel(self.robots, self.icc)
        if not 1e-6 <= self.per_day <= 1e9:
            raise InputError("INPUT_VALUE", "per_day", f"{self.per_day} episodes a day are none, or never end")
        if self.unit == "robot" and self.robots < 2:
            raise InputError("INPUT_COUNT", "robots", "one robot cannot run both versions: draw by episode")

    def arm(self, share: float) -> int:
        """Return how many whole robots get the new version: as a stage does, at least one, and one is left over."""
        return max(1, min(math.floor(share * self.robots + 1e-9), self.robots - 1))


@dataclass(frozen=True)
class Row:
    """One design's answer.

    Attributes:
        method: of the test.
        episodes: of the new version: what a fixed design needs, or a sequential one takes on average; infinite: never.
        latest: after so many of them 90 % of the tests have ended; a fixed design takes as many always.
        power: of the test.
        error: Monte-Carlo standard errors of ``episodes`` and of ``power``; 0: a formula.
        per_robot: episodes that each robot of the fleet does meanwhile, both versions together.
        days, latest_days: that ``episodes`` and ``latest`` take.
        robots: that the experiment needs to end within the days asked for; None: not asked.
    """

    method: str
    episodes: float
    latest: float
    power: float
    per_robot: float
    days: float
    latest_days: float
    error: tuple[float, float] = (0.0, 0.0)
    robots: int | None = None


@dataclass(frozen=True)
class Plan:
    """An answer in sentences, one a line, and its figures."""

    sentences: list[str]
    rows: list[Row]
    settings: Mapping[str, float | int | str | None] = field(default_factory=dict)

    def __str__(self) -> str:
        heads = ["design", "episodes, new version", "90 % ended by", "power", "per robot", "days", "90 % within"]
        cells = []
        for row in self.rows:
            more = [f" ± {error:.{digits}f}" if error else "" for error, digits in zip(row.error, (0, 2), strict=True)]
            texts = [
                _number(row.episodes) + more[0],
                _number(row.latest),
                f"{row.power:.2f}{more[1]}",
                _number(row.per_robot),
            ]
            cells.append([row.method, *texts, _number(row.days, 1), _number(row.latest_days, 1)])
        return "\n".join(self.sentences) + "\n\n" + table("", heads, cells)


@dataclass(frozen=True)
class Question:
    """What all plans ask alike.

    Attributes:
        fleet: who does the work.
        alpha, power: error rates.
        days: also say how many robots end within so many days.
        runs, seed, bar: of the simulation; 0 runs: formulas only.
    """

    fleet: Fleet
    alpha: float = 0.05
    power: float = 0.8
    days: float | None = None
    runs: int = 500
    seed: int = 0
    bar: Bar = no_bar

    def __post_init__(self) -> None:
        check_runs(self.runs or 2, self.seed)
        if self.days is not None and not check_number("days", self.days) * self.fleet.per_day >= 1.0:
            raise InputError("INPUT_VALUE", "days", f"in {self.days} days a robot does not finish one episode")

    def rng(self) -> np.random.Generator:
        """Return the source of chance, the same each time."""
        return np.random.default_rng(self.seed)

    def fixed(self, independent: float, share: float) -> Row:
        """Return the row of a design that needs ``independent`` independent episodes of the new version."""
        fleet = self.fleet
        if not 1e-6 <= check_probability("share", share) <= 1.0 - 1e-6:
            raise InputError("INPUT_PROBABILITY", "share", f"{share} leaves one version next to nothing")
        if fleet.unit == "robot":
            each = sample_size.episodes_per_robot(independent, fleet.arm(share), fleet.icc)
            per_robot = math.ceil(each - 1e-9) if math.isfinite(each) else math.inf
            episodes = per_robot * fleet.arm(share)
        else:
            episodes = math.ceil(independent - 1e-9)
            per_robot = episodes / share / fleet.robots
        days = per_robot / fleet.per_day
        robots = self._robots(independent, share)
        return Row("one look at the end", episodes, episodes, self.power, per_robot, days, days, robots=robots)

    def sequential(self, method: str, stopping: Stopping, share: float) -> Row:
        """Return the row of a simulated design where episodes are drawn."""
        (mean, error), (power, power_error) = stopping.mean, stopping.decided
        latest, a_day = (
            min(stopping.quantile(_LATEST), stopping.horizon),
            self.fleet.robots * self.fleet.per_day * share,
        )
        errors, robots = (error, power_error), self._robots(latest, share)
        per_robot = mean / share / self.fleet.robots
        return Row(method, mean, latest, power, per_robot, mean / a_day, latest / a_day, errors, robots)

    def _robots(self, independent: float, share: float) -> int | None:
        if self.days is None:
            return None
        each = self.days * self.fleet.per_day
        if self.fleet.unit == "episode":
            return math.ceil(independent / share / each - 1e-9)
        return math.ceil(sample_size.robots_needed(independent, self.fleet.icc, each) / share - 1e-9)

    def answer(self, question: str, rows: list[Row], share: float, more: list[str]) -> Plan:
        """Return the plan of these rows, the first of them fixed."""
        fleet, fixed = self.fleet, rows[0]
        if math.isinf(fixed.episodes):
            sentence = (
                f"{question}: with {plural(fleet.arm(share), 'robot')} on the new version no number of episodes is enough at an "
                f"intraclass correlation of {fleet.icc:g}. Take more robots, or let robots hold both versions and draw episodes."
            )
        else:
            sentence = (
                f"{question}: {fixed.episodes:,.0f} episodes of the new version with one look at the end, {fixed.per_robot:,.1f} "
                f"episodes (both versions) on each of {fleet.robots} robots, {fixed.days:,.1f} days at {fleet.per_day:g} a day."
            )
        sentences = [sentence, *more]
        if fixed.robots is not None:
            by = [f"{fixed.robots} robots with one look"]
            by += [
                f"{row.robots} with the sequential test (in 90 % of tests)"
                for row in rows[1:]
                if row.robots is not None
            ]
            sentences.append(f"To end within {self.days:g} day{'s' * (self.days != 1)}: {', '.join(by)}.")
        return Plan(sentences, rows, {**vars(fleet), "alpha": self.alpha, "share": share})


def plan_ab(rate_a: float, rate_b: float, question: Question) -> Plan:
    """Plan an A/B test: two-sided, half of the episodes (or robots) each; of success rates that shall be told apart."""
    q, more = question, []
    rates = {"alpha": q.alpha, "power": q.power, "sides": 2}
    independent = sample_size.two_proportions(rate_a, rate_b, **rates)  # type: ignore[arg-type]
    rows = [q.fixed(independent, 0.5)]
    if q.runs and q.fleet.unit == "episode":
        try:
            stopping = sign_test_pairs(
                rate_a,
                rate_b,
                alpha=q.alpha,
                power=q.power,
                first=math.ceil(independent),
                runs=q.runs,
                seed=q.seed,
                bar=q.bar,
            )
        except TooLargeError as e:
            more.append(f"No sequential design: {e.reason}.")
        else:
            row = q.sequential(f"exact sign test, at most {stopping.horizon:,.0f} pairs", stopping, 0.5)
            rows.append(row)
            more.append(
                f"The exact sign test, looked at after every pair, takes {row.episodes:,.0f} ± {row.error[0]:.0f} on average "
                f"({row.days:.1f} days); 90 % of tests have ended by day {row.latest_days:.1f}, and {row.power:.0%} have found "
                "the difference."
            )
    sides = f"two-sided α {q.alpha:g}, power {q.power:.0%}"
    return q.answer(f"To tell {_rate(rate_a)} from {_rate(rate_b)} ({sides})", rows, 0.5, more)


def plan_noninferiority(rate: float, margin: float, question: Question, share: float = 0.5) -> Plan:
    """Plan to show, one-sided, that a version that is as good as the other (``rate``) is worse by less than ``margin``."""
    q = question
    independent = sample_size.non_inferiority(rate, margin, alpha=q.alpha, power=q.power, share=share)
    text = f"To show at {_rate(rate)} that success fell by less than {100 * margin:g} points"
    more = [
        "The judge of a canary asks for it at the end of a stage and once more after a prolongation, at half of its α each."
    ]
    return q.answer(f"{text} (α {q.alpha:g}, power {q.power:.0%})", [q.fixed(independent, share)], share, more)


def plan_detect(incumbent: float, canary: float, question: Question, share: float = 0.05) -> Plan:
    """Plan how soon a canary that is worse is found, one-sided; ``share``: of the episodes (or robots) that it gets."""
    q, more = question, []
    check_rate("incumbent", incumbent)
    check_rate("canary", canary)
    if canary >= incumbent:
        raise InputError("INPUT_RATE", "canary", f"{canary} is not below the incumbent's {incumbent}")
    independent = sample_size.two_proportions(incumbent, canary, alpha=q.alpha, power=q.power, share=share, sides=1)
    rows = [q.fixed(independent, share)]
    if q.runs and q.fleet.unit == "episode":
        horizon = math.ceil(_HORIZON * independent)
        runs = min(q.runs, max(_LEAST_RUNS, int(_EPISODES / (horizon / share))))
        try:
            with q.bar("e-process of the canary", runs) as tick:
                stopping = detection_times(
                    incumbent, canary, share, alpha=q.alpha, horizon=horizon, runs=runs, rng=q.rng(), progress=tick
                )
        except TooLargeError as e:
            more.append(f"No sequential design: {e.reason}.")
        else:
            row = q.sequential("e-process, looked at after every episode", stopping, share)
            rows.append(row)
            in_time = share_and_error(float((stopping.units <= q.fleet.robots * q.fleet.per_day).mean()), runs)
            more.append(
                f"The e-process, looked at after every episode, takes {row.episodes:,.0f} ± {row.error[0]:.0f} on average "
                f"({row.days:.2g} days). With this share for 24 h, as in the first default stage, it finds {share_text(in_time)} "
                f"of such updates ({runs} runs)."
            )
    question_text = f"To find a drop from {_rate(incumbent)} to {_rate(canary)} (α {q.alpha:g}, power {q.power:.0%})"
    return q.answer(question_text, rows, share, more)


def _number(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}" if math.isfinite(value) else "never"


def _rate(rate: float) -> str:
    """Return a rate with as many digits as it has, one at least."""
    return f"{rate:.1%}" if round(rate, 3) == rate else f"{100.0 * rate:.6g}%"
