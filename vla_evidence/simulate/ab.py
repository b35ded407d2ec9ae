# SPDX-License-Identifier: Apache-2.0
"""Exercise 1: how many episodes per robot it takes until a fleet knows that 88 % is more than 85 %.

All rules judge the same simulated episodes (:mod:`vla_evidence.simulate.ab_runs`), once with equal and once with different
versions. "False alarm": a winner is declared although the versions are equal.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from vla_evidence.analysis import Bar, no_bar
from vla_evidence.errors import InputError, check_probability
from vla_evidence.planning import sample_size
from vla_evidence.planning.stopping import Stopping, check_robots, check_runs, share_and_error, sign_test_pairs
from vla_evidence.simulate import plots
from vla_evidence.simulate.ab_runs import INTERVALS, SIGN_TEST, Z_TEST, Runs, by_robot_runs, paired_runs
from vla_evidence.simulate.fleet import FleetModel
from vla_evidence.simulate.report import Report
from vla_evidence.tables import share_text, table

_LONGEST = 2.0
"""Rules are followed for so many times the size of the design with one look."""
_ROBOT_RUNS = 500
"""Most runs with whole robots as units: each takes thousands of random assignments."""


@dataclass(frozen=True)
class Settings:
    """Of the exercise.

    Attributes:
        robots, rate_a, rate_b, confidence: of the question; two-sided.
        power: probability of finding the difference.
        per_day: episodes a robot does a day.
        icc: how much robots differ: intraclass correlation of their outcomes.
        runs, seed: of the simulation.
    """

    robots: int = 50
    rate_a: float = 0.85
    rate_b: float = 0.88
    confidence: float = 0.95
    power: float = 0.8
    per_day: float = 40.0
    icc: float = 0.05
    runs: int = 2000
    seed: int = 0

    @property
    def alpha(self) -> float:
        """Level of the tests."""
        return 1.0 - check_probability("confidence", self.confidence)


@dataclass(frozen=True)
class Rule:
    """What one rule does: shares of runs and mean episodes on each robot if versions differ, with Monte-Carlo errors."""

    rule: str
    looks: str
    false_alarm: tuple[float, float]
    power: tuple[float, float]
    per_robot: tuple[float, float]

    def row(self) -> list[str]:
        """Return it for a table."""
        mean, error = self.per_robot
        effort = f"{mean:.0f}" + (f" ± {error:.1f}" if error else "")
        return [self.rule, self.looks, share_text(self.false_alarm), share_text(self.power), effort]


def run(settings: Settings, bar: Bar = no_bar) -> Report:
    """Answer the question.

    Raises:
        InputError: what cannot be.
        EvidenceError: ANALYSIS_MISSING.
    """
    FleetModel(settings.robots, settings.icc)
    check_robots(settings.robots)
    check_runs(settings.runs, settings.seed)
    if settings.robots < 2:
        raise InputError("INPUT_COUNT", "robots", f"{settings.robots} robots cannot be in two arms")
    rates, alpha = (settings.rate_a, settings.rate_b), settings.alpha
    wanted = sample_size.two_proportions(*rates, alpha=alpha, power=settings.power)
    sequential = sign_test_pairs(
        *rates,
        alpha=alpha,
        power=settings.power,
        first=math.ceil(wanted),
        runs=settings.runs,
        seed=settings.seed,
        bar=bar,
    )
    end = math.ceil(wanted / settings.robots)
    rounds = math.ceil(max(_LONGEST * wanted, sequential.horizon) / settings.robots)
    equal = (settings.rate_a, settings.rate_a)
    rng = np.random.default_rng(settings.seed)
    with bar("both versions on each robot", 2 * settings.runs) as tick:
        same, different = (
            paired_runs(
                settings.robots, settings.icc, means, rounds, int(sequential.horizon), alpha, settings.runs, rng, tick
            )
            for means in (equal, rates)
        )
    few = min(settings.runs, _ROBOT_RUNS)
    with bar("one version on each robot", 2 * few) as tick:
        same_robots, different_robots = (
            by_robot_runs(settings.robots, settings.icc, means, 2 * end, alpha, few, rng, tick)
            for means in (equal, rates)
        )
    pairs = _rules(same, different, end, sequential.horizon / settings.robots)
    robots = _rules(same_robots, different_robots, different_robots.looks)
    return _report(settings, sequential, pairs, robots, different)


def _rules(same: Runs, different: Runs, end: float, sign_test_end: float = math.inf) -> list[Rule]:
    """Return what each rule did by its end, in looks; those of one look and those that look again and again."""
    found = []
    for rule in different.at_look:
        shares = [float(runs.at_look[rule][math.ceil(end) - 1]) for runs in (same, different)]
        once = (share_and_error(shares[0], same.runs), share_and_error(shares[1], different.runs))
        found.append(Rule(rule, "one", *once, (end * different.episodes_a_look, 0.0)))
    for rule, first in different.first.items():
        limit = sign_test_end if rule == SIGN_TEST else end
        false = share_and_error(float((same.first[rule] <= limit).mean()), same.runs)
        power = share_and_error(float((first <= limit).mean()), different.runs)
        spent = Stopping(np.where(first <= limit, first, np.inf), limit, first).mean
        effort = (spent[0] * different.episodes_a_look, spent[1] * different.episodes_a_look)
        found.append(Rule(rule, different.looks_text, false, power, effort))
    return found


def _find(rules: list[Rule], name: str, looks: str) -> Rule:
    return next(rule for rule in rules if (rule.rule, rule.looks) == (name, looks))


def _report(s: Settings, sequential: Stopping, pairs: list[Rule], robots: list[Rule], runs: Runs) -> Report:
    sizes = [_size(s, power) for power in sorted({0.8, 0.9, s.power})]
    chosen = next(size for size in sizes if size.power == s.power)
    at_most = math.ceil(2.0 * sequential.horizon / s.robots)
    sentence = _sentence(s, chosen, at_most, _find(pairs, SIGN_TEST, runs.looks_text), pairs, robots)
    figures = {
        "settings": asdict(s),
        "fixed": [{**asdict(size), "alone": size.alone if math.isfinite(size.alone) else None} for size in sizes],
        "sequential_at_most_per_robot": at_most,
        "paired": [asdict(rule) for rule in pairs],
        "by_robot": [asdict(rule) for rule in robots],
    }
    curves = {
        f"{Z_TEST}, one look": runs.at_look[Z_TEST],
        f"{SIGN_TEST}, by then (over after {at_most})": runs.share_by(SIGN_TEST),
        f"{INTERVALS}, one look": runs.at_look[INTERVALS],
    }
    drawn = {
        "power": partial(plots.power_curves, curves, runs.episodes_a_look, s.power, chosen.per_robot, s.robots),
        "errors": partial(plots.rule_errors, pairs, robots, s.alpha),
    }
    text = "\n\n".join([sentence, _size_table(s, sizes), *_rule_tables(s, pairs, robots, runs.runs)])
    return Report("ab", sentence, text, figures, drawn)


@dataclass(frozen=True)
class _Size:
    """Of the design with one look: episodes of each version, on each robot that runs both, or ``alone`` one."""

    power: float
    normal: float
    per_robot: int
    days: float
    alone: float


def _size(s: Settings, power: float) -> _Size:
    normal = sample_size.two_proportions(s.rate_a, s.rate_b, alpha=s.alpha, power=power)
    each = math.ceil(2.0 * normal / s.robots)
    alone = sample_size.episodes_per_robot(normal, s.robots // 2, s.icc)
    return _Size(power, normal, each, each / s.per_day, alone)


def _sentence(s: Settings, chosen: _Size, at_most: int, ours: Rule, pairs: list[Rule], robots: list[Rule]) -> str:
    apart, by_robot = (_find(rules, INTERVALS, "one") for rules in (pairs, robots))
    again = next(rule for rule in robots if rule.rule == INTERVALS and rule.looks != "one")
    return (
        f"To tell {s.rate_b:.0%} from {s.rate_a:.0%} at {s.confidence:.0%} confidence with {s.power:.0%} power, {s.robots} "
        f"robots that run both versions need {chosen.per_robot} episodes each, {math.ceil(chosen.per_robot / 2)} with each "
        f"version ({math.ceil(chosen.normal):,} per version, {chosen.days:.1f} days at {s.per_day:g} a day), with one look at "
        f"the end; the exact sign test, looked at after every pair, needs {ours.per_robot[0]:.0f} ± {ours.per_robot[1]:.1f} on "
        f"average and at most {at_most}. {_alone(s, chosen)} "
        f'"The Wilson intervals do not overlap" misses the difference in {1.0 - apart.power[0]:.0%} of such tests, and '
        f"where each robot runs one version "
        f"it finds one that is not there in {by_robot.false_alarm[0]:.0%} of tests "
        f"({again.false_alarm[0]:.0%} with {again.looks} looks)."
    )


def _alone(s: Settings, chosen: _Size) -> str:
    """Return what the lesson's own design takes: one version on each robot."""
    design = f"One version on each robot, as in the lesson, at an intraclass correlation of {s.icc:g}"
    if math.isfinite(chosen.alone):
        return f"{design}: {math.ceil(chosen.alone):,} episodes each."
    return f"{design}: {s.robots} robots never get there, however long they run."


def _size_table(s: Settings, sizes: list[_Size]) -> str:
    rows = []
    for size in sizes:
        alone = f"{math.ceil(size.alone):,}" if math.isfinite(size.alone) else "never"
        rows.append(
            [f"{size.power:.0%}", f"{math.ceil(size.normal):,}", f"{size.per_robot}", f"{size.days:.1f}", alone]
        )
    robots = 2 * (math.floor(sizes[0].normal * s.icc) + 1)
    heads = ["power", "per version", "per robot", f"days at {s.per_day:g}", "each with one version"]
    note = f"One version on each robot, intraclass correlation {s.icc:g}: with fewer than {robots} robots no number is enough."
    return table("One look at the end: episodes needed", heads, rows, note)


def _rule_tables(s: Settings, pairs: list[Rule], robots: list[Rule], runs: int) -> list[str]:
    heads = ["rule", "looks", "false alarm", "power", "episodes per robot"]
    errors = (
        f"False alarm: both {s.rate_a:.0%}; power: {s.rate_a:.0%} against {s.rate_b:.0%}; ± is the Monte-Carlo standard error; "
        "episodes until it ends, if the versions differ."
    )
    unit = "The robot is the unit: rules that count episodes mistake differences of robots for differences of versions."
    titles = (
        f"Both versions on each robot, in pairs ({runs} runs)",
        f"One version on each robot, robots that differ (intraclass correlation {s.icc:g}, {min(runs, _ROBOT_RUNS)} runs)",
    )
    return [
        table(title, heads, [rule.row() for rule in rules], note)
        for title, rules, note in zip(titles, (pairs, robots), (errors, unit), strict=True)
    ]
