# SPDX-License-Identifier: Apache-2.0
"""Exercise 1: how many episodes per robot it takes until a fleet knows that 88 % is more than 85 %.

All rules judge the same simulated episodes, once with equal and once with different versions. "False alarm": a winner is declared
although the versions are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vla_evidence.analysis import Bar, Tick, no_bar
from vla_evidence.errors import InputError, check_probability
from vla_evidence.planning import sample_size
from vla_evidence.planning.stopping import batches, check_runs, share_and_error, sign_test_pairs
from vla_evidence.sequential.randomisation_test import RandomisationTest, cohort_assignments
from vla_evidence.sequential.sign_test import SignTestDesign
from vla_evidence.sequential.sign_test_batch import stopping_times
from vla_evidence.sequential.spending import obrien_fleming
from vla_evidence.simulate import plots
from vla_evidence.simulate.fleet import RNG, FleetModel
from vla_evidence.simulate.report import Report
from vla_evidence.simulate.rules import Rule, intervals_apart, z_test
from vla_evidence.tables import share_text, table

INTERVALS, Z_TEST, WELCH = "Wilson intervals apart", "z test of episodes", "Welch's test of robots"
SIGN_TEST, RANDOMISATION_TEST = "exact sign test", "exact randomisation test"
_LONGEST, _ROBOT_RUNS = 2.0, 500
"""Rules are followed for so many times the design with one look; most runs with whole robots, which are slow."""
_LOOKS, _DRAWS, _MOST_ROBOTS = 10, 999, 20_000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """Of the exercise: the question (two-sided), the fleet (``icc``: how much robots differ), and the simulation."""

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
class Runs:
    """What the rules said in many runs of one situation.

    Attributes:
        looks: made at most; every one at so many episodes on each robot more.
        at_look: rule → share of runs in which it would declare a winner if look k were its only one, shape [looks].
        first: rule → the look at which it first declares one, infinite if it does not; shape [runs].
    """

    looks: int
    episodes_a_look: float
    at_look: dict[str, Floats]
    first: dict[str, Floats]


def run(settings: Settings, bar: Bar = no_bar) -> Report:
    """Answer the question."""
    s = settings
    FleetModel(s.robots, s.icc)
    check_runs(s.runs, s.seed)
    if not 2 <= s.robots <= _MOST_ROBOTS:
        reason = f"{s.robots:,} does not lie between 2, to run both versions, and {_MOST_ROBOTS:,}, to be simulated"
        raise InputError("INPUT_COUNT", "robots", reason)
    rates, equal = (s.rate_a, s.rate_b), (s.rate_a, s.rate_a)
    wanted = sample_size.two_proportions(*rates, alpha=s.alpha, power=s.power)
    sized = {"alpha": s.alpha, "power": s.power, "first": math.ceil(wanted), "runs": s.runs, "seed": s.seed}
    most_pairs = sign_test_pairs(*rates, **sized, bar=bar).horizon  # type: ignore[arg-type]
    end, rounds = math.ceil(wanted / s.robots), math.ceil(max(_LONGEST * wanted, most_pairs) / s.robots)
    rng, few = np.random.default_rng(s.seed), min(s.runs, _ROBOT_RUNS)
    with bar("both versions on each robot", 2 * s.runs) as tick:
        same, different = (_paired(s, means, rounds, int(most_pairs), rng, tick) for means in (equal, rates))
    pairs = _rules(same, different, end, "every round", most_pairs / s.robots)
    with bar("one version on each robot", 2 * few) as tick:
        same, by_robot = (_by_robot(s, means, 2 * end, few, rng, tick) for means in (equal, rates))
    robots = _rules(same, by_robot, by_robot.looks, str(by_robot.looks))
    return _report(s, math.ceil(2.0 * most_pairs / s.robots), pairs, robots, different)


def _paired(s: Settings, means: tuple[float, float], rounds: int, pairs: int, rng: RNG, progress: Tick) -> Runs:
    """Simulate rounds of one pair (one episode with either version) on each robot; the exact sign test ends at ``pairs``."""
    fleet, n = FleetModel(s.robots, s.icc), s.robots * np.arange(1, rounds + 1)
    design = SignTestDesign(pairs, s.alpha, two_sided=True, spending=obrien_fleming)
    at_look = {Z_TEST: np.zeros(rounds), INTERVALS: np.zeros(rounds)}
    first: dict[str, list[Floats]] = {Z_TEST: [], INTERVALS: [], SIGN_TEST: []}
    for size in batches(s.runs, 2 * s.robots * rounds):
        y = rng.random((2, size, rounds, s.robots)) < fleet.rates(means, size, rng)[:, :, None, :]
        a, b = np.cumsum(y.sum(axis=3), axis=2)
        for rule, flags in ((Z_TEST, z_test(a, n, b, n, s.alpha)), (INTERVALS, intervals_apart(a, n, b, n))):
            at_look[rule] += flags.sum(axis=0) / s.runs
            first[rule].append(_first(flags))
        signs = (y[1].astype(np.int8) - y[0]).reshape(size, -1)[:, :pairs]
        used, decisions = stopping_times(signs, design)
        first[SIGN_TEST].append(np.where(decisions != 0, used / s.robots, np.inf))
        progress(size)
    return Runs(rounds, 2.0, at_look, {rule: np.concatenate(parts) for rule, parts in first.items()})


def _by_robot(s: Settings, means: tuple[float, float], episodes: int, runs: int, rng: RNG, progress: Tick) -> Runs:
    """Simulate a fleet of which a random half runs B: ``episodes`` on each robot, looked at ten times."""
    looks, fleet = min(_LOOKS, episodes), FleetModel(s.robots, s.icc)
    done = np.round(np.linspace(episodes / looks, episodes, looks)).astype(np.int64)
    steps = np.diff(done, prepend=0)[:, None]
    rules: dict[str, Callable[[Floats, Floats, int], bool]] = {
        Z_TEST: lambda a, b, m: bool(z_test(a.sum(), a.size * m, b.sum(), b.size * m, s.alpha)),
        INTERVALS: lambda a, b, m: bool(intervals_apart(a.sum(), a.size * m, b.sum(), b.size * m)),
        WELCH: lambda a, b, m: _welch(a / m, b / m) < s.alpha,
    }
    flags = {rule: np.zeros((runs, len(done)), dtype=bool) for rule in rules}
    ours = np.full(runs, np.inf)
    for number in range(runs):
        is_b, rates = rng.permutation(s.robots) < s.robots // 2, fleet.rates(means, 1, rng)[:, 0]
        totals = np.cumsum(rng.binomial(steps, np.where(is_b, rates[1], rates[0])), axis=0)
        for look, m in enumerate(done.tolist()):
            for rule, decides in rules.items():
                flags[rule][number, look] = decides(totals[look, ~is_b], totals[look, is_b], m)
        drawn = cohort_assignments({f"{robot}": bool(b) for robot, b in enumerate(is_b)}, f"run {number}", _DRAWS)
        test = RandomisationTest(s.alpha, spending=obrien_fleming, icc=s.icc)
        for look, m in enumerate(done.tolist()):
            if test.look(drawn, totals[look], np.full(s.robots, m), m / episodes).decision:
                ours[number] = look + 1.0
                break
        progress(1)
    first = {rule: _first(found) for rule, found in flags.items()}
    at_look = {rule: np.asarray(found.mean(axis=0)) for rule, found in flags.items()}
    return Runs(len(done), episodes / len(done), at_look, {**first, RANDOMISATION_TEST: ours})


def _first(flags: NDArray[np.bool_]) -> Floats:
    """Return the first look (from 1) that is flagged, infinite if none is; flags: shape [runs, looks]."""
    return np.where(flags.any(axis=1), flags.argmax(axis=1) + 1.0, np.inf)


def _welch(a: Floats, b: Floats) -> float:
    """Return the two-sided p-value of Welch's t test; 1 where nothing varies or a version has one robot."""
    if min(a.size, b.size) < 2:
        return 1.0
    va, vb = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    if va + vb == 0.0:
        return 1.0
    from scipy.special import stdtr  # type: ignore[import-untyped]  # see intervals.py: not at a server's start

    freedom = (va + vb) ** 2 / (va**2 / (a.size - 1) + vb**2 / (b.size - 1))
    return float(2.0 * stdtr(freedom, -abs(a.mean() - b.mean()) / np.sqrt(va + vb)))


def _rules(same: Runs, different: Runs, end: int, looks: str, sign_test_end: float = math.inf) -> list[Rule]:
    """Return what each rule did by its end, in looks; those of one look and those that look again and again."""
    found, a_look = [], different.episodes_a_look
    runs = next(iter(same.first.values())).size
    for rule in different.at_look:
        false, power = (share_and_error(float(r.at_look[rule][end - 1]), runs) for r in (same, different))
        found.append(Rule(rule, "one", false, power, (end * a_look, 0.0)))
    for rule, first in different.first.items():
        limit = sign_test_end if rule == SIGN_TEST else end
        false, power = (share_and_error(float((f <= limit).mean()), runs) for f in (same.first[rule], first))
        spent = np.minimum(first, limit) * a_look
        effort = float(spent.mean()), float(spent.std(ddof=1) / math.sqrt(runs))
        found.append(Rule(rule, looks, false, power, effort))
    return found


def _report(s: Settings, at_most: int, pairs: list[Rule], robots: list[Rule], runs: Runs) -> Report:
    sizes = {power: _size(s, power) for power in sorted({0.8, 0.9, s.power})}
    chosen = sizes[s.power]
    sentence = _sentence(s, chosen, at_most, pairs, robots)
    figures = {
        "settings": asdict(s),
        "one_look": {f"{power:g}": size for power, size in sizes.items()},
        "sequential_at_most_per_robot": at_most,
        "paired": [asdict(rule) for rule in pairs],
        "by_robot": [asdict(rule) for rule in robots],
    }
    by_then = (runs.first[SIGN_TEST][:, None] <= np.arange(1, runs.looks + 1)).mean(axis=0)
    curves = {
        f"{Z_TEST}, one look": runs.at_look[Z_TEST],
        f"{SIGN_TEST}, by then (over after {at_most})": by_then,
        f"{INTERVALS}, one look": runs.at_look[INTERVALS],
    }
    drawn = {
        "power": partial(plots.power_curves, curves, runs.episodes_a_look, s.power, chosen["per_robot"], s.robots),
        "errors": partial(plots.rule_errors, pairs, robots, s.alpha),
    }
    text = "\n\n".join([sentence, *_tables(s, sizes, pairs, robots)])
    return Report("ab", sentence, text, figures, drawn)


def _size(s: Settings, power: float) -> dict[str, float]:
    """Return the design with one look: episodes per version, on each robot that runs both, its days, or ``alone`` one."""
    normal = sample_size.two_proportions(s.rate_a, s.rate_b, alpha=s.alpha, power=power)
    each, alone = math.ceil(2.0 * normal / s.robots), sample_size.episodes_per_robot(normal, s.robots // 2, s.icc)
    return {"per_version": math.ceil(normal), "per_robot": each, "days": each / s.per_day, "alone": alone}


def _sentence(s: Settings, chosen: dict[str, float], at_most: int, pairs: list[Rule], robots: list[Rule]) -> str:
    apart, by_robot, again = (next(r for r in rules if r.rule == INTERVALS) for rules in (pairs, robots, robots[::-1]))
    ours = next(rule for rule in pairs if rule.rule == SIGN_TEST)
    alone = f"One version on each robot, as in the lesson, at an intraclass correlation of {s.icc:g}: "
    if math.isfinite(chosen["alone"]):
        alone += f"{math.ceil(chosen['alone']):,} episodes each."
    else:
        alone += f"{s.robots} robots never get there, however long they run."
    each, days = chosen["per_robot"], chosen["days"]
    return (
        f"To tell {s.rate_b:.0%} from {s.rate_a:.0%} at {s.confidence:.0%} confidence with {s.power:.0%} power, {s.robots} "
        f"robots that run both versions need {each} episodes each, {math.ceil(each / 2)} with each version "
        f"({chosen['per_version']:,} per version, {days:.1f} days at {s.per_day:g} a day), with one look at the end; the exact "
        f"sign test, looked at after every pair, needs {ours.per_robot[0]:.0f} ± {ours.per_robot[1]:.1f} on average and at most "
        f'{at_most}. {alone} "The Wilson intervals do not overlap" misses the difference in {1.0 - apart.power[0]:.0%} of such '
        f"tests, and where each robot runs one version it finds one that is not there in {by_robot.false_alarm[0]:.0%} of tests "
        f"({again.false_alarm[0]:.0%} with {again.looks} looks)."
    )


def _tables(s: Settings, sizes: dict[float, dict[str, float]], pairs: list[Rule], robots: list[Rule]) -> list[str]:
    rows = []
    for power, size in sizes.items():
        alone = f"{math.ceil(size['alone']):,}" if math.isfinite(size["alone"]) else "never"
        rows.append([f"{power:.0%}", f"{size['per_version']:,}", f"{size['per_robot']}", f"{size['days']:.1f}", alone])
    fewest = 2 * (math.floor(next(iter(sizes.values()))["per_version"] * s.icc) + 1)
    heads = ["power", "per version", "per robot", f"days at {s.per_day:g}", "each with one version"]
    note = f"One version on each robot, intraclass correlation {s.icc:g}: with fewer than {fewest} robots no number is enough."
    found = [table("One look at the end: episodes needed", heads, rows, note)]
    errors = (
        f"False alarm: both {s.rate_a:.0%}; power: {s.rate_a:.0%} against {s.rate_b:.0%}; ± is the Monte-Carlo standard error; "
        "episodes until it ends, if the versions differ."
    )
    unit = "The robot is the unit: rules that count episodes mistake differences of robots for differences of versions."
    few = f"intraclass correlation {s.icc:g}, {min(s.runs, _ROBOT_RUNS)} runs"
    for title, rules, text in (
        (f"Both versions on each robot, in pairs ({s.runs} runs)", pairs, errors),
        (f"One version on each robot, robots that differ ({few})", robots, unit),
    ):
        cells = []
        for rule in rules:
            effort = f"{rule.per_robot[0]:.0f}" + (f" ± {rule.per_robot[1]:.1f}" if rule.per_robot[1] else "")
            cells.append([rule.rule, rule.looks, share_text(rule.false_alarm), share_text(rule.power), effort])
        found.append(table(title, ["rule", "looks", "false alarm", "power", "episodes per robot"], cells, text))
    return found
