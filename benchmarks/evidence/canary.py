# SPDX-License-Identifier: Apache-2.0
"""Canaries: how many of its episodes it takes until a worse one is taken back, and how often an equal one is.

Episodes of a fleet go to the canary with probability π each; a success rate of 0.87 is what the incumbent has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evidence import canary_rules as rules
from benchmarks.evidence.canary_rules import Watched
from benchmarks.evidence.montecarlo import Experiment, Outcome, Samples
from benchmarks.evidence.tables import EstimateTable, Figure, Goal
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.sequential.non_inferiority import NonInferiority
from vla_evidence.sequential.two_sample import BetaPrior, log_e_paths

INCUMBENT_RATE, WORSE_RATE = 0.87, 0.75
PROBABILITIES = (0.05, 0.25, 0.50)
MARGIN = 0.02
STAGE = 400
"""Canary episodes within which a rollback counts."""
ALPHAS = (0.05, 0.01)
Priors = tuple[BetaPrior, BetaPrior]
"""Of the incumbent and of the canary."""
UNIFORM: Priors = (BetaPrior(), BetaPrior())
_INFORMED = CanaryConfig.informed(870, 1000)
INFORMED: Priors = (_INFORMED.incumbent_prior, _INFORMED.canary_prior)
"""As the judge makes them from a registry that has seen 870 of 1000 episodes of the incumbent succeed."""
EXCLUDED = 0.10
"""Margin of the first stage."""
_LOOKS = 4
_PATIENCE = 10 * STAGE
"""Canary episodes after which a run is given up; it then counts as that many."""
_CELLS = 60_000
"""Units of all runs that are evaluated at a time."""


def detect(
    rng: np.random.Generator, runs: int, *, probability: float, canary: float, margin: float, priors: Priors
) -> Outcome:
    """Return how many canary episodes passed until our evidence reached 1/α, for each α of ``ALPHAS``."""
    groups = np.empty((runs, 0), dtype=np.int8)
    ys = np.empty((runs, 0), dtype=np.bool_)
    found = {alpha: np.full(runs, _PATIENCE) for alpha in ALPHAS}
    running = np.arange(runs)
    length = math.ceil(100 / probability)
    while running.size and groups.shape[1] * probability < _PATIENCE:
        g, y = _units(rng, (running.size, length), probability, canary)
        groups, ys = np.concatenate([groups, g], axis=1), np.concatenate([ys, y], axis=1)
        path = _our_path(groups, ys, probability, margin, priors)
        episodes = np.cumsum(groups, axis=1, dtype=np.int32)
        for alpha in ALPHAS:
            crossed = path >= -math.log(alpha)
            at = episodes[np.arange(running.size), np.argmax(crossed, axis=1)]
            found[alpha][running] = np.where(crossed.any(axis=1), np.minimum(at, _PATIENCE), _PATIENCE)
        going = path.max(axis=1) < -math.log(min(ALPHAS))
        running, groups, ys = running[going], groups[going], ys[going]
        length = groups.shape[1]  # twice as long from the beginning: on the whole, twice the work of one pass
    return {f"episodes {alpha}": numbers for alpha, numbers in found.items()}


def watch(rng: np.random.Generator, runs: int, *, probability: float, canary: float) -> Outcome:
    """Return, for each rule and ours, whether and after how many of ``STAGE`` canary episodes it rolls back."""
    at = np.cumsum(rng.geometric(probability, (runs, STAGE)), axis=1) - 1  # the unit that is the k-th canary episode
    groups = np.zeros((runs, int(at.max()) + 1), dtype=np.int8)
    np.put_along_axis(groups, at, 1, axis=1)
    ys = rng.random(groups.shape, dtype=np.float32) < np.where(
        groups == 1, np.float32(canary), np.float32(INCUMBENT_RATE)
    )
    watched = Watched(
        canary=np.take_along_axis(ys, at, axis=1),
        incumbent_episodes=at - np.arange(STAGE),
        incumbent_successes=np.take_along_axis(np.cumsum(ys & (groups == 0), axis=1), at, axis=1),
        baseline=rng.random((runs, STAGE), dtype=np.float32) < INCUMBENT_RATE,
    )
    verdicts = {name: rule(watched) for name, rule in RULES.items()}
    for name, (margin, priors) in OURS.items():
        path = _our_path(groups, ys, probability, margin, priors)
        crossed = (path >= -math.log(0.05)) & (np.arange(groups.shape[1]) <= at[:, -1:])
        episodes = np.cumsum(groups, axis=1, dtype=np.int32)
        first = np.maximum(1, episodes[np.arange(runs), np.argmax(crossed, axis=1)])
        verdicts[name] = np.where(crossed.any(axis=1), first, 0)
    outcome: dict[str, NDArray[Any]] = {"drop excluded": _drop_excluded(watched, probability)}
    for name, first in verdicts.items():
        outcome[f"{name}: rolled back"] = first > 0
        outcome[f"{name}: episodes"] = np.where(first > 0, first, STAGE)
    return outcome


def _drop_excluded(watched: Watched, probability: float) -> NDArray[np.bool_]:
    """Return whether a drop of ``EXCLUDED`` is excluded at one of ``_LOOKS`` looks: what an advance needs in this stage."""
    at = np.arange(1, _LOOKS + 1) * watched.episodes // _LOOKS - 1
    counts = np.stack(
        [
            watched.incumbent_successes[:, at],
            watched.incumbent_episodes[:, at] - watched.incumbent_successes[:, at],
            watched.canary_successes[:, at],
            at + 1 - watched.canary_successes[:, at],
        ],
        axis=2,
    )
    process = NonInferiority((EXCLUDED,))
    found = np.zeros(len(counts), dtype=np.bool_)
    for run, looks in enumerate(counts.tolist()):
        for look in looks:
            process.restore([[probability, *look]])
            drop = process.excluded_drop(0.05)
            if drop is not None and drop <= EXCLUDED:
                found[run] = True
                break
    return found


OURS: dict[str, tuple[float, Priors]] = {
    "ours": (0.0, UNIFORM),
    "ours, informed prior": (0.0, INFORMED),
}
_TENS = range(20, STAGE + 1, 10)
RULES: dict[str, Callable[[Watched], rules.Episodes]] = {
    "Argo-like: under 0.85 in more than 3 windows of 20": rules.argo,
    "AWS-like: over 15 % failed, from 20 on": rules.aws,
    "Kayenta-like: Mann-Whitney of episodes, 3 judgements": rules.kayenta_episodes,
    "Kayenta-like: interval of 50 rates, 1 judgement": rules.kayenta_rates,
    "z test, looked at once, at the end": partial(rules.z_test, looks=[STAGE]),
    "z test, looked at every 10": partial(rules.z_test, looks=_TENS),
    "lesson's should_advance, asked once, at the end": partial(rules.lessons_rule, looks=[STAGE]),
    "lesson's should_advance, asked after every episode": partial(rules.lessons_rule, looks=range(1, STAGE + 1)),
}


def experiments() -> list[Experiment]:
    """Return all of this part."""
    found = []
    for pi in PROBABILITIES:
        batch = max(4, round(_CELLS * pi / 200))
        for name, (margin, priors) in _DETECTIONS.items():
            draw = partial(detect, probability=pi, canary=WORSE_RATE, margin=margin, priors=priors)
            found.append(Experiment(f"detect {name}, π = {pi}", draw, batch))
        batch = max(4, round(_CELLS * pi / STAGE))
        found.append(Experiment(f"equal, π = {pi}", partial(watch, probability=pi, canary=INCUMBENT_RATE), batch))
    pi = PROBABILITIES[0]
    batch = max(4, round(_CELLS * pi / STAGE))
    found.append(Experiment(f"worse, π = {pi}", partial(watch, probability=pi, canary=WORSE_RATE), batch))
    return found


_DETECTIONS = {"margin 0": (0.0, UNIFORM), f"margin {MARGIN}": (MARGIN, UNIFORM), "informed": (0.0, INFORMED)}


def tables() -> list[EstimateTable]:
    """Return the tables that :func:`experiments` fill."""
    detection = EstimateTable(
        f"Canary episodes until {INCUMBENT_RATE} → {WORSE_RATE} is rolled back (α = 0.05 where nothing else is said)",
        ["π", "mean", "median", "p90", f"within {STAGE}", f"margin {MARGIN}, mean", "α = 0.01, mean",
         "informed prior, mean", f"equal: false rollback in {STAGE}", "the same, informed prior"],
    )  # fmt: skip
    for pi in PROBABILITIES:
        plain, margin, informed = (f"detect {name}, π = {pi}" for name in _DETECTIONS)
        metric, equal = f"episodes {ALPHAS[0]}", f"equal, π = {pi}"
        detection.add(
            f"{pi:.2f}",
            *(Figure(plain, metric, statistic) for statistic in ("mean", "p50", "p90")),
            Figure(plain, metric, f"within {STAGE}", ".2%"),
            Figure(margin, metric, "mean"),
            Figure(plain, f"episodes {ALPHAS[1]}", "mean"),
            Figure(informed, metric, "mean"),
            *(Figure(equal, f"{name}: rolled back", "share", ".2%") for name in OURS),
        )
    detection.notes.append(f"Every run goes on until it is rolled back, or for {_PATIENCE} canary episodes.")
    pi = PROBABILITIES[0]
    peers = EstimateTable(
        f"Rules beside each other, π = {pi}, {STAGE} canary episodes, incumbent {INCUMBENT_RATE}",
        ["rule", "equal: rolled back", "equal: passes", f"{WORSE_RATE}: rolled back", f"{WORSE_RATE}: passes",
         f"{WORSE_RATE}: its episodes, mean"],
    )  # fmt: skip
    equal, worse = f"equal, π = {pi}", f"worse, π = {pi}"
    for name in [*OURS, *RULES]:
        passes = ("drop excluded", "share") if name in OURS else (f"{name}: rolled back", "none")
        peers.add(
            name,
            Figure(equal, f"{name}: rolled back", "share", ".2%"),
            Figure(equal, *passes, ".2%"),
            Figure(worse, f"{name}: rolled back", "share", ".2%"),
            Figure(worse, *passes, ".2%"),
            Figure(worse, f"{name}: episodes", "mean"),
        )
    peers.notes += [
        f"Ours passes a canary when a drop of {EXCLUDED} is excluded ({_LOOKS} looks) and asks a person if it neither passes nor",
        f"is rolled back; the others pass what they do not roll back. What is not rolled back has spent all {STAGE} episodes.",
    ]
    return [detection, peers]


def goals(samples: Samples) -> list[Goal]:
    """Return what was promised and what was found."""
    pi = PROBABILITIES[0]
    found = []
    for text, experiment, metric, statistic, limit, unit in (
        (f"false rollback of an equal canary, π = {pi}", f"equal, π = {pi}", "ours: rolled back", "share", 0.035, "%"),
        ("canary episodes to detect 0.87 → 0.75", f"detect margin 0, π = {pi}", "episodes 0.05", "mean", 97.0, ""),
        ("the same with an informed prior", f"detect informed, π = {pi}", "episodes 0.05", "mean", 80.0, ""),
    ):
        estimate = Figure(experiment, metric, statistic).estimate(samples)
        if estimate is not None:
            found.append(Goal(text, estimate.value, limit, True, estimate.error, unit))
    return found


def _units(
    rng: np.random.Generator, shape: tuple[int, int], probability: float, canary: float
) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Return the group and the success of every unit."""
    groups = (rng.random(shape, dtype=np.float32) < probability).astype(np.int8)
    rate = np.where(groups == 1, np.float32(canary), np.float32(INCUMBENT_RATE))
    return groups, rng.random(shape, dtype=np.float32) < rate


def _our_path(
    groups: NDArray[np.int8], ys: NDArray[np.bool_], probability: float, margin: float, priors: Priors
) -> NDArray[np.float64]:
    incumbent, canary = priors
    successes = incumbent.successes, canary.successes
    units = incumbent.successes + incumbent.failures, canary.successes + canary.failures
    return log_e_paths(groups, ys, probability, margin=margin, counts=(successes, units))
