# SPDX-License-Identifier: Apache-2.0
"""A/B on pairs: how often a better policy is found and after how many pairs, and how often one is "found" among equals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evidence import ab_rules, packages
from benchmarks.evidence.ab_rules import Pairs, Successes, stop_of
from benchmarks.evidence.montecarlo import Experiment, Outcome, Samples
from benchmarks.evidence.tables import Cell, EstimateTable, Figure, Goal
from vla_evidence.sequential.sign_test import SignTestDesign
from vla_evidence.sequential.sign_test_batch import stopping_times
from vla_evidence.sequential.spending import LINEAR, OBRIEN_FLEMING, Spending

WORSE, BETTER = 0.75, 0.87
ALPHA = 0.05
SIZES = (200, 500)
ICC, ROBOTS = 0.1, 10
CLOSE_WORSE, CLOSE_BETTER, CLOSE_PAIRS, CLOSE_ALPHA = 0.85, 0.88, 2800, 0.025
CLOSE_FIXED = 2725
"""Pairs that the fixed-size formula asks for (85 % against 88 %, two-sided 0.05, power 90 %)."""
STEP_MEASURED = {200: (0.879, 109.1), 500: (0.998, 150.0)}
"""N → power and mean pairs of STEP, measured with its authors' package: what the goal compares with where it is not installed.

N = 200: 20,000 runs by :mod:`benchmarks.evidence.packages`, standard errors 0.002 and 0.4; N = 500: fewer, earlier.
"""
PACKAGE_RUNS = {"STEP": 20_000, "SAVI": 100}
"""The package's SAVI takes milliseconds a pair: enough runs to compare it with ours from the paper, for N = 200 only."""

Rule = Callable[[Successes, Successes], Pairs]


def exact(a: Successes, b: Successes, alpha: float, spending: Spending) -> Pairs:
    """Ours: the exact α-spending sign test, one-sided."""
    pairs, decisions = stopping_times(
        b.astype(np.int8) - a.astype(np.int8), SignTestDesign(a.shape[1], alpha, spending=spending)
    )
    return stop_of(pairs, decisions > 0)


def compare(
    rng: np.random.Generator,
    runs: int,
    *,
    rules: Mapping[str, Rule],
    pairs: int,
    rates: tuple[float, float],
    icc: float = 0.0,
) -> Outcome:
    """Return, for each rule, whether it finds B better, and the pairs it used (all of them if it does not).

    With ``icc`` the pairs are those of ``ROBOTS`` robots in turn whose success rates differ (beta-distributed, this correlation
    between episodes of one robot), A and B being equally good on each: then both rates must be the same.
    """
    rate = np.broadcast_to(np.asarray(rates[0]), (runs, 1))
    if icc > 0.0:
        strength = 1.0 / icc - 1.0
        of_robot = rng.beta(rates[0] * strength, (1.0 - rates[0]) * strength, (runs, ROBOTS))
        rate = np.tile(of_robot, (1, -(-pairs // ROBOTS)))[:, :pairs]
    a = rng.random((runs, pairs), dtype=np.float32) < rate
    b = rng.random((runs, pairs), dtype=np.float32) < (rate if icc > 0.0 else rates[1])
    outcome: dict[str, NDArray[Any]] = {}
    for name, rule in rules.items():
        stop = rule(a, b)
        outcome[f"{name}: rejects"] = stop > 0
        outcome[f"{name}: pairs"] = np.where(stop > 0, stop, pairs)
    return outcome


OURS = "ours: exact, linear spending"


def rules_for(pairs: int) -> dict[str, Rule]:
    """Return the tests of the first table."""
    return {
        OURS: partial(exact, alpha=ALPHA, spending=LINEAR),
        "ours: exact, O'Brien-Fleming spending": partial(exact, alpha=ALPHA, spending=OBRIEN_FLEMING),
        "McNemar betting": partial(ab_rules.mcnemar_betting, alpha=ALPHA),
        "SAVI, from the paper": partial(ab_rules.savi, alpha=ALPHA),
        "fixed: McNemar at the end": partial(ab_rules.mcnemar_at_end, alpha=ALPHA),
        "fixed: z at the end": partial(ab_rules.z_test, looks=[pairs], alpha=ALPHA),
        "z looked at every 10 pairs": partial(ab_rules.z_test, looks=range(10, pairs + 1, 10), alpha=ALPHA),
    }


_CLOSE_Z = f"fixed: z at {CLOSE_FIXED}"
_CLOSE = {
    "ours: exact, O'Brien-Fleming spending": partial(exact, alpha=CLOSE_ALPHA, spending=OBRIEN_FLEMING),
    "ours: exact, linear spending": partial(exact, alpha=CLOSE_ALPHA, spending=LINEAR),
    "fixed: McNemar at the end": partial(ab_rules.mcnemar_at_end, alpha=CLOSE_ALPHA),
    _CLOSE_Z: partial(ab_rules.z_test, looks=[CLOSE_FIXED], alpha=CLOSE_ALPHA),
}
_DIFFER, _EQUAL, _ROBOTS = "differ", "equal", f"equal, robots differ (ICC {ICC})"
_CASES = {
    _DIFFER: ((WORSE, BETTER), 0.0),
    _EQUAL: ((BETTER, BETTER), 0.0),
    _ROBOTS: ((BETTER, BETTER), ICC),
}


def experiments() -> list[Experiment]:
    """Return all of this part."""
    found = []
    for n in SIZES:
        for name, rates, icc in (
            (_DIFFER, (WORSE, BETTER), 0.0),
            (_EQUAL, (BETTER, BETTER), 0.0),
            (_ROBOTS, (BETTER, BETTER), ICC),
        ):
            draw = partial(compare, rules=rules_for(n), pairs=n, rates=rates, icc=icc)
            found.append(Experiment(f"pairs, N = {n}, {name}", draw, 1000, factor=4))
            for test in packages.TESTS:
                if name in _package_cases(test, n) and packages.unavailable(test, n, ALPHA) is None:
                    rules: dict[str, Rule] = {test: partial(packages.stop, test, alpha=ALPHA)}
                    draw = partial(compare, rules=rules, pairs=n, rates=rates)
                    found.append(Experiment(f"{test}, N = {n}, {name}", draw, 25, runs=PACKAGE_RUNS[test]))
    for name, rates in ((_DIFFER, (CLOSE_WORSE, CLOSE_BETTER)), (_EQUAL, (CLOSE_BETTER, CLOSE_BETTER))):
        draw = partial(compare, rules=_CLOSE, pairs=CLOSE_PAIRS, rates=rates)
        found.append(Experiment(f"pairs, N = {CLOSE_PAIRS}, {name}", draw, 500))
    return found


def _package_cases(test: str, pairs: int) -> tuple[str, ...]:
    if test == "SAVI":
        return (_DIFFER,) if pairs == SIZES[0] else ()
    return (_DIFFER, _EQUAL)


def tables() -> list[EstimateTable]:
    """Return the tables that :func:`experiments` fill."""
    large = [_table(n) for n in SIZES]
    close = EstimateTable(
        f"A/B on pairs, {CLOSE_BETTER} against {CLOSE_WORSE}, one-sided α = {CLOSE_ALPHA}, N = {CLOSE_PAIRS}",
        ["test", "power", "mean pairs", "error"],
    )
    for rule in _CLOSE:
        power, pairs, error = _cells(rule, CLOSE_PAIRS, "pairs", (_DIFFER, _EQUAL))
        close.add(rule, power, str(CLOSE_FIXED) if rule == _CLOSE_Z else pairs, error)
    return [*large, close]


def _table(pairs: int) -> EstimateTable:
    table = EstimateTable(
        f"A/B on pairs, {BETTER} against {WORSE}, one-sided α = {ALPHA}, at most N = {pairs} pairs",
        ["test", "power", "mean pairs", "error", f"error, ICC {ICC}"],
    )
    for rule in rules_for(pairs):
        table.add(rule, *_cells(rule, pairs, "pairs", (_DIFFER, _EQUAL, _ROBOTS)))
    for test in packages.TESTS:
        reason, cases = packages.unavailable(test, pairs, ALPHA), _package_cases(test, pairs)
        cells = [reason] if reason else _cells(test, pairs, test, cases) if cases else []
        table.add(f"{test}, its authors' package", *cells, *[None] * (4 - len(cells)))
    table.notes.append(f"Error: B declared better where both succeed equally often ({BETTER}). It may be 5 % at most.")
    return table


def _cells(rule: str, pairs: int, prefix: str, cases: Sequence[str]) -> list[Cell]:
    power, *errors = (f"{prefix}, N = {pairs}, {case}" for case in cases)
    return [
        Figure(power, f"{rule}: rejects", "share", ".2%"),
        Figure(power, f"{rule}: pairs", "mean"),
        *(Figure(error, f"{rule}: rejects", "share", ".2%") for error in errors),
    ]


def goals(samples: Samples) -> list[Goal]:
    """Return what was promised of the sign test beside STEP, and what was found."""
    found = []
    for n in SIZES:
        ours = [Figure(f"pairs, N = {n}, {_DIFFER}", f"{OURS}: {m}", s).estimate(samples) for m, s in _MEASURES]
        step = [Figure(f"STEP, N = {n}, {_DIFFER}", f"STEP: {m}", s).estimate(samples) for m, s in _MEASURES]
        if None in ours:
            continue
        measured = [e for e in step if e]
        reference = [e.value for e in measured] or STEP_MEASURED[n]
        errors = [e.error for e in measured] or (0.0, 0.0)
        whose = "STEP's" if measured else "STEP's, measured earlier:"
        power, pairs = (e for e in ours if e)
        text = f"A/B power, N = {n}, {whose} {reference[0]:.3f}"
        found.append(Goal(text, power.value, reference[0] - 0.015, False, math.hypot(power.error, errors[0])))
        text = f"A/B mean pairs, N = {n}, {whose} {reference[1]:.1f}"
        found.append(Goal(text, pairs.value, reference[1] + 3.0, True, math.hypot(pairs.error, errors[1])))
    return found


_MEASURES = (("rejects", "share"), ("pairs", "mean"))
