# SPDX-License-Identifier: Apache-2.0
"""How many episodes, how many days, how many robots? Fixed designs by formula, sequential ones by simulating the judges.

Three questions: does B differ from A (:func:`plan_ab`), is the canary no more than a margin worse (:func:`plan_noninferiority`),
how soon is a bad canary found (:func:`plan_detect`). Each answer has the design with one look at the end (two formulas that
should agree) and the sequential one that the judges of this package use, simulated with a seed and its Monte-Carlo error.
"""

from __future__ import annotations

import math

from vla_evidence.errors import InputError
from vla_evidence.planning import sample_size
from vla_evidence.planning.rows import (
    Fleet,
    Plan,
    Row,
    Simulation,
    answer,
    cohort_row,
    describe,
    fixed_row,
    planned_each,
    sequential_row,
)
from vla_evidence.planning.stopping import TooLargeError, detection_times, exclusion_times, sign_test_pairs
from vla_evidence.planning.stopping_robots import randomisation_times
from vla_evidence.simulate.fleet import FleetModel

__all__ = ["Fleet", "Plan", "Row", "Simulation", "describe", "plan_ab", "plan_detect", "plan_noninferiority"]

_HORIZON = 4.0
"""Sequential tests without an end of their own are simulated for so many times (harm: twice that) the fixed design's size."""
_EPISODES, _LEAST_RUNS = 5e7, 20
"""A small drop takes so many episodes that fewer runs than asked for are simulated: about so many episodes in all; said so."""


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
        simulation: of the sequential design: the exact sign test on pairs, or the randomisation test on robots.

    Raises:
        InputError: what cannot be.
        EvidenceError: ANALYSIS_MISSING.
    """
    simulation = simulation or Simulation()
    normal, rows = _one_look((rate_a, rate_b), 0.5, 2, alpha, power, fleet, days)
    question, note = f"{_rate(rate_a)} from {_rate(rate_b)}", ""
    if simulation.runs and fleet.unit == "robot":
        each = planned_each(rows[0], fleet, days)
        with simulation.bar("exact randomisation test", simulation.runs) as tick:
            stopping = randomisation_times(
                rate_a, rate_b, FleetModel(fleet.robots, fleet.icc), each, alpha=alpha, runs=simulation.runs,
                rng=simulation.rng(), progress=tick,
            )  # fmt: skip
        method = f"sequential, exact randomisation test, {each:,} each"
        rows.append(sequential_row(method, stopping, 0.5, fleet, days))
    elif simulation.runs:
        try:
            stopping = sign_test_pairs(
                rate_a, rate_b, alpha=alpha, power=power, first=math.ceil(normal), runs=simulation.runs,
                seed=simulation.seed, bar=simulation.bar,
            )  # fmt: skip
        except TooLargeError as e:
            note = f"No sequential design: {e.reason} pairs."
        else:
            method = f"sequential, exact sign test, at most {stopping.horizon:,.0f} pairs"
            rows.append(sequential_row(method, stopping, 0.5, fleet, days))
    settings = {"rate_a": rate_a, "rate_b": rate_b, "alpha": alpha, "power": power}
    return answer(
        f"To tell {question} (two-sided α {alpha:g}, power {power:.0%})", rows, settings, fleet, 0.5, days, note
    )


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
    rows = [fixed_row("one look, normal formula", size, share, power, fleet, days)]
    if simulation.runs and fleet.unit == "robot":
        rows.append(cohort_row(rate, rate, fleet, share, alpha, rows[0], days, simulation, margin=margin, better=True))
    elif simulation.runs:
        with simulation.bar("e-process of non-inferiority", simulation.runs) as tick:
            stopping = exclusion_times(
                rate, rate, share, margin, alpha=alpha, horizon=math.ceil(_HORIZON * size), runs=simulation.runs,
                rng=simulation.rng(), progress=tick,
            )  # fmt: skip
        rows.append(sequential_row("sequential, e-process of non-inferiority", stopping, share, fleet, days))
    settings = {"rate": rate, "margin": margin, "share": share, "alpha": alpha, "power": power}
    question = f"To show at {rate:.1%} that a drop of {margin:.1%} is excluded (α {alpha:g}, power {power:.0%})"
    return answer(question, rows, settings, fleet, share, days)


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
    note = ""
    if canary >= incumbent:
        raise InputError("INPUT_RATE", "canary", f"{canary} is not below the incumbent's {incumbent}")
    normal, rows = _one_look((incumbent, canary), share, 1, alpha, power, fleet, days)
    if simulation.runs and fleet.unit == "robot":
        rows.append(cohort_row(incumbent, canary, fleet, share, alpha, rows[0], days, simulation))
        shared = "In a rollout by robot stages and looks share α: the last look of a first stage has 0.35"
        note = f"One look at α {alpha:g}. {shared}."
    elif simulation.runs:
        horizon = math.ceil(2 * _HORIZON * normal)
        runs = min(simulation.runs, max(_LEAST_RUNS, int(_EPISODES / (horizon / share))))
        few = f", {runs} runs" if runs < simulation.runs else ""
        try:
            with simulation.bar("e-process of the canary", runs) as tick:
                stopping = detection_times(
                    incumbent,
                    canary,
                    share,
                    alpha=alpha,
                    horizon=horizon,
                    runs=runs,
                    rng=simulation.rng(),
                    progress=tick,
                )
        except TooLargeError as e:
            note = f"No sequential design: {e.reason}."
        else:
            rows.append(
                sequential_row(f"sequential, e-process, looks at every episode{few}", stopping, share, fleet, days)
            )
    settings = {"incumbent": incumbent, "canary": canary, "alpha": alpha, "power": power, "share": share}
    question = f"To find a drop from {_rate(incumbent)} to {_rate(canary)} (α {alpha:g}, power {power:.0%})"
    return answer(question, rows, settings, fleet, share, days, note)


def _one_look(
    rates: tuple[float, float],
    share: float,
    sides: sample_size.Sides,
    alpha: float,
    power: float,
    fleet: Fleet,
    days: float | None,
) -> tuple[float, list[Row]]:
    """Return the episodes of the treated arm that one look at the end needs by the normal formula, and the rows of both."""
    normal = sample_size.two_proportions(*rates, alpha=alpha, power=power, share=share, sides=sides)
    arcsine = sample_size.two_proportions_arcsine(*rates, alpha=alpha, power=power, share=share, sides=sides)
    found = (("normal formula", normal), ("arcsine (statsmodels)", arcsine))
    return normal, [fixed_row(f"one look, {by}", size, share, power, fleet, days) for by, size in found]


def _rate(rate: float) -> str:
    """Return a rate with as many digits as it has, one at least."""
    return f"{rate:.1%}" if round(rate, 3) == rate else f"{100.0 * rate:.6g}%"
