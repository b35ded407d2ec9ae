# SPDX-License-Identifier: Apache-2.0
"""How many episodes, how many days, how many robots? Fixed designs by formula, sequential ones by simulating the tests.

Three questions: does B differ from A (:func:`plan_ab`), is the canary worse by less than a margin (:func:`plan_noninferiority`),
how soon is a bad canary found (:func:`plan_detect`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

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
from vla_evidence.tables import plural, share_text

Unit = Literal["episode", "robot"]
_LATEST, _HORIZON = 0.9, 8.0
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
class Plan:
    """An answer in sentences, one a line.

    Attributes:
        fixed: of the design with one look: ``episodes`` of the new version, episodes ``per_robot``, ``days``, and ``robots``
            that it needs to end within the days asked for; infinite: never.
        sequential: the same of the simulated one, on average, with ``error`` and ``power`` (Monte-Carlo), and ``latest_days``,
            by which 90 % of tests have ended; empty if there is none.
    """

    sentences: list[str]
    fixed: dict[str, float]
    sequential: dict[str, Any]

    def __str__(self) -> str:
        return "\n".join(self.sentences)


@dataclass(frozen=True)
class Question:
    """What all plans ask alike: of a fleet, at these error rates, perhaps within so many days; 0 runs: formulas only."""

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

    @property
    def simulates(self) -> bool:
        """Whether the sequential design is simulated."""
        return self.runs > 0 and self.fleet.unit == "episode"

    def fixed(self, independent: float, share: float) -> dict[str, float]:
        """Return the design that needs ``independent`` independent episodes of the new version."""
        fleet = self.fleet
        if not 1e-6 <= check_probability("share", share) <= 1.0 - 1e-6:
            raise InputError("INPUT_PROBABILITY", "share", f"{share} leaves one version next to nothing")
        if fleet.unit == "robot":
            each = sample_size.episodes_per_robot(independent, fleet.arm(share), fleet.icc)
            per_robot = float(math.ceil(each - 1e-9)) if math.isfinite(each) else math.inf
            episodes = per_robot * fleet.arm(share)
        else:
            episodes = math.ceil(independent - 1e-9)
            per_robot = episodes / share / fleet.robots
        found = {"episodes": episodes, "per_robot": per_robot, "days": per_robot / fleet.per_day}
        return found | self._robots(independent, share)

    def sequential(self, stopping: Stopping, share: float) -> dict[str, Any]:
        """Return the simulated design."""
        (mean, error), (power, power_error) = stopping.mean, stopping.decided
        latest, a_day = (
            min(stopping.quantile(_LATEST), stopping.horizon),
            self.fleet.robots * self.fleet.per_day * share,
        )
        found = {"episodes": mean, "error": error, "power": (power, power_error), "at_most": stopping.horizon}
        return {**found, "days": mean / a_day, "latest_days": latest / a_day, **self._robots(latest, share)}

    def _robots(self, independent: float, share: float) -> dict[str, float]:
        if self.days is None:
            return {}
        each = self.days * self.fleet.per_day
        if self.fleet.unit == "episode":
            return {"robots": math.ceil(independent / share / each - 1e-9)}
        return {"robots": math.ceil(sample_size.robots_needed(independent, self.fleet.icc, each) / share - 1e-9)}

    def answer(
        self, question: str, fixed: dict[str, float], share: float, sequential: dict[str, Any], more: str
    ) -> Plan:
        """Return the plan of these designs; ``more``: a sentence on the sequential one."""
        fleet, question = self.fleet, f"{question}, α {self.alpha:g}, power {self.power:.0%})"
        if math.isinf(fixed["episodes"]):
            sentence = (
                f"{question}: with {plural(fleet.arm(share), 'robot')} on the new version no number of episodes is enough at an "
                f"intraclass correlation of {fleet.icc:g}. Take more robots, or let robots hold both versions and draw episodes."
            )
        else:
            sentence = (
                f"{question}: {fixed['episodes']:,.0f} episodes of the new version with one look at the end, "
                f"{fixed['per_robot']:,.1f} episodes (both versions) on each of {fleet.robots} robots, {fixed['days']:,.1f} days "
                f"at {fleet.per_day:g} a day."
            )
        sentences = [sentence] + ([more] if more else [])
        if self.days is not None:
            by = f"{fixed['robots']} robots with one look"
            if sequential:
                by += f", {sequential['robots']} with the sequential test (in 90 % of tests)"
            sentences.append(f"To end within {self.days:g} day{'s' * (self.days != 1)}: {by}.")
        return Plan(sentences, fixed, sequential)


def plan_ab(rate_a: float, rate_b: float, question: Question) -> Plan:
    """Plan an A/B test: two-sided, half of the episodes (or robots) each; the success rates are to be told apart."""
    q, more, row = question, "", {}
    independent = sample_size.two_proportions(rate_a, rate_b, alpha=q.alpha, power=q.power)
    fixed = q.fixed(independent, 0.5)
    if q.simulates:
        sized = {"alpha": q.alpha, "power": q.power, "first": math.ceil(independent), "runs": q.runs, "seed": q.seed}
        try:
            row = q.sequential(sign_test_pairs(rate_a, rate_b, **sized, bar=q.bar), 0.5)  # type: ignore[arg-type]
        except TooLargeError as e:
            more = f"No sequential design: {e.reason}."
        else:
            more = (
                f"The exact sign test, looked at after every pair, takes {row['episodes']:,.0f} ± {row['error']:.0f} on average "
                f"({row['days']:.1f} days) and at most {row['at_most']:,.0f}; 90 % of tests have ended by day "
                f"{row['latest_days']:.1f}, and {share_text(row['power'])} have found the difference."
            )
    return q.answer(f"To tell {_rate(rate_a)} from {_rate(rate_b)} (two-sided", fixed, 0.5, row, more)


def plan_noninferiority(rate: float, margin: float, question: Question, share: float = 0.5) -> Plan:
    """Plan to show, one-sided, that a version that is as good as the other (``rate``) is worse by less than ``margin``."""
    q = question
    independent = sample_size.non_inferiority(rate, margin, alpha=q.alpha, power=q.power, share=share)
    text = f"To show at {_rate(rate)} that success fell by less than {100 * margin:g} points (one-sided"
    more = "The judge of a canary asks for it at the end of a stage and once more after a prolongation, at half of its α each."
    return q.answer(text, q.fixed(independent, share), share, {}, more)


def plan_detect(incumbent: float, canary: float, question: Question, share: float = 0.05) -> Plan:
    """Plan how soon a canary that is worse is found, one-sided; ``share``: of the episodes (or robots) that it gets."""
    q, more, row = question, "", {}
    check_rate("incumbent", incumbent)
    check_rate("canary", canary)
    if canary >= incumbent:
        raise InputError("INPUT_RATE", "canary", f"{canary} is not below the incumbent's {incumbent}")
    independent = sample_size.two_proportions(incumbent, canary, alpha=q.alpha, power=q.power, share=share, sides=1)
    fixed = q.fixed(independent, share)
    if q.simulates:
        horizon = math.ceil(_HORIZON * independent)
        runs = min(q.runs, max(_LEAST_RUNS, int(_EPISODES / (horizon / share))))
        how = {"alpha": q.alpha, "horizon": horizon, "runs": runs, "rng": np.random.default_rng(q.seed)}
        try:
            with q.bar("e-process of the canary", runs) as tick:
                stopping = detection_times(incumbent, canary, share, progress=tick, **how)  # type: ignore[arg-type]
        except TooLargeError as e:
            more = f"No sequential design: {e.reason}."
        else:
            row = q.sequential(stopping, share)
            in_time = share_and_error(float((stopping.units <= q.fleet.robots * q.fleet.per_day).mean()), runs)
            more = (
                f"The e-process, looked at after every episode, takes {row['episodes']:,.0f} ± {row['error']:.0f} on average "
                f"({row['days']:.2g} days). With this share for 24 h, as in the first default stage, it finds "
                f"{share_text(in_time)} of such updates ({runs} runs)."
            )
    return q.answer(f"To find a drop from {_rate(incumbent)} to {_rate(canary)} (one-sided", fixed, share, row, more)


def _rate(rate: float) -> str:
    """Return a rate with as many digits as it has, one at least."""
    return f"{rate:.1%}" if round(rate, 3) == rate else f"{100.0 * rate:.6g}%"
