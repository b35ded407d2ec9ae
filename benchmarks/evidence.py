# SPDX-License-Identifier: Apache-2.0
"""Error rates of our judges beside a threshold rule and the z test: ``python -m benchmarks.evidence --out build/bench``.

Every rule judges the same simulated episodes. What other tools do (Argo, AWS, Kayenta, STEP, SAVI) was measured once;
docs/benchmarks.md has those tables, and the commit that made them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.planning.stopping import batches, share_and_error
from vla_evidence.sequential.randomisation_test import RandomisationTest, cohort_assignments, without_baseline
from vla_evidence.sequential.sign_test import SignTestDesign
from vla_evidence.sequential.sign_test_batch import stopping_times
from vla_evidence.sequential.spending import linear, obrien_fleming
from vla_evidence.sequential.two_sample import BetaPrior, log_e_paths
from vla_evidence.simulate.fleet import RNG, FleetModel
from vla_evidence.simulate.rules import should_advance, z_test
from vla_evidence.tables import share_text, table

RUNS, SEED = 20_000, 20261121
GOOD, BAD = 0.87, 0.75
SHARE, STAGE = 0.05, 400
"""Of the episodes that the canary gets; canary episodes, on average, within which a rollback counts."""
PAIRS, ALPHA = 200, 0.05
ROBOTS, CANARIES, EACH, PAST, ICC = 100, 5, 40, 144, 0.05
ROBOT_LOOKS = (0.125, 0.25, 0.5, 1.0)
Found = Mapping[str, NDArray[np.float64]]
"""Rule → when each run was rejected (in canary episodes or pairs), infinite if it was not; shape [runs]."""


def canaries(rng: RNG, runs: int, canary: float) -> Found:
    """Return after how many canary episodes each rule rolls an update back."""
    parts: dict[str, list[NDArray[np.float64]]] = {}
    units = round(STAGE / SHARE)
    informed = CanaryConfig(history=(870, 1000)).priors
    for size in batches(runs, units):
        groups = (rng.random((size, units)) < SHARE).astype(np.int8)
        ys = rng.random((size, units)) < np.where(groups == 1, canary, GOOD)
        new_n, new = np.cumsum(groups, axis=1), np.cumsum(groups * ys, axis=1)
        old_n, old = np.arange(1, units + 1) - new_n, np.cumsum(ys, axis=1) - new
        enough, advance = should_advance(new, np.maximum(new_n, 1), old, np.maximum(old_n, 1))
        known = (new_n >= 20) & (old_n >= 20)
        worse = known & (new * old_n < old * new_n)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = worse & z_test(old, old_n, new, new_n, 2.0 * ALPHA)
        every_ten = (groups == 1) & (new_n % 10 == 0)
        last = np.arange(units) == units - 1
        rejects = {
            "ours": _paths(groups, ys, (BetaPrior(), BetaPrior())) >= -np.log(ALPHA),
            "ours, prior from history": _paths(groups, ys, informed) >= -np.log(ALPHA),
            "z test, once at the end": z & last,
            "z test, every 10 canary episodes": z & every_ten,
            "new mean >= old mean - 2 %, once at the end": enough & ~advance & last,
            "new mean >= old mean - 2 %, every 10": enough & ~advance & every_ten,
        }
        for rule, flags in rejects.items():
            first = flags.argmax(axis=1)
            parts.setdefault(rule, []).append(np.where(flags.any(axis=1), new_n[np.arange(size), first], np.inf))
    return {rule: np.concatenate(found) for rule, found in parts.items()}


def _paths(groups: NDArray[np.int8], ys: NDArray[np.bool_], priors: tuple[BetaPrior, BetaPrior]) -> NDArray[np.float64]:
    counts = (tuple(p.successes for p in priors), tuple(p.successes + p.failures for p in priors))
    return log_e_paths(groups, ys, SHARE, counts=counts)


def pairs(rng: RNG, runs: int, lower: float) -> Found:
    """Return after how many pairs each rule finds B (87 %) better than A (``lower``), one-sided."""
    parts: dict[str, list[NDArray[np.float64]]] = {}
    n = np.arange(1, PAIRS + 1)
    for size in batches(runs, PAIRS):
        a, b = rng.random((size, PAIRS)) < lower, rng.random((size, PAIRS)) < GOOD
        found = {}
        for name, spending in (("linear", linear), ("O'Brien-Fleming", obrien_fleming)):
            used, decided = stopping_times(b.astype(np.int8) - a, SignTestDesign(PAIRS, ALPHA, spending=spending))
            found[f"ours: exact sign test, {name} spending"] = np.where(decided > 0, used, np.inf)
        won_a, won_b = np.cumsum(a, axis=1), np.cumsum(b, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (won_b > won_a) & z_test(won_a, n, won_b, n, 2.0 * ALPHA)
        found["z test, once at the end"] = np.where(z[:, -1], PAIRS, np.inf)
        tens = z[:, 9::10]
        found["z test, every 10 pairs"] = np.where(tens.any(axis=1), 10.0 * (tens.argmax(axis=1) + 1), np.inf)
        for rule, times in found.items():
            parts.setdefault(rule, []).append(times)
    return {rule: np.concatenate(found) for rule, found in parts.items()}


def robots(rng: RNG, runs: int, canary: float) -> Found:
    """Return whether each rule rolls back a canary on 5 of 100 robots that differ, 40 episodes each; at the four looks."""
    fleet = FleetModel(ROBOTS, ICC)
    done = np.round(np.array(ROBOT_LOOKS) * EACH).astype(np.int64)
    found: dict[str, list[float]] = {}
    for run in range(runs):
        rates = fleet.rates((GOOD, canary), 1, rng)[:, 0]
        is_canary = rng.permutation(ROBOTS) < CANARIES
        steps = np.diff(done, prepend=0)[:, None]
        totals = np.cumsum(rng.binomial(steps, np.where(is_canary, rates[1], rates[0])), axis=0)
        baseline = rng.binomial(PAST, rates[0]) / PAST
        drawn = cohort_assignments({f"{r}": bool(b) for r, b in enumerate(is_canary)}, f"{run}", 999)
        unknown = np.full(ROBOTS, np.nan)
        for name, past in (("ours: robots", unknown), ("ours: robots, less their own past", baseline)):
            test = RandomisationTest(ALPHA, two_sided=False)
            rejected = False
            for share, n, total in zip(ROBOT_LOOKS, done, totals, strict=True):
                counts = np.full(ROBOTS, float(n))
                rejected |= bool(
                    test.look(drawn, without_baseline(n - total.astype(float), counts, past), counts, share).decision
                )
            found.setdefault(name, []).append(1.0 if rejected else np.inf)
        new, old = totals[-1][is_canary].sum(), totals[-1][~is_canary].sum()
        counts_of = CANARIES * EACH, (ROBOTS - CANARIES) * EACH
        worse = new / counts_of[0] < old / counts_of[1]
        z = worse and bool(z_test(old, counts_of[1], new, counts_of[0], 2.0 * ALPHA))
        found.setdefault("z test of episodes (the wrong unit), once", []).append(1.0 if z else np.inf)
    return {rule: np.array(values) for rule, values in found.items()}


Draw = Callable[[RNG, int, float], Found]
TABLES: tuple[tuple[str, Draw, float, float, int], ...] = (
    (
        f"Canary, {SHARE:.0%} of the episodes, {STAGE} canary episodes: rolled back, alpha {ALPHA}",
        canaries,
        GOOD,
        BAD,
        1,
    ),
    (f"A/B, {PAIRS} pairs, {GOOD} against {BAD}: B found better, one-sided alpha {ALPHA}", pairs, GOOD, BAD, 1),
    (
        f"{CANARIES} of {ROBOTS} robots, {EACH} episodes each, correlation {ICC}: rolled back, alpha {ALPHA}",
        robots,
        GOOD,
        BAD,
        10,
    ),
)
"""Title, simulation, rate of an equal and of another version, and a divisor of the runs."""


def main(argv: list[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for evidence.json")
    parser.add_argument("--runs", type=int, default=RUNS, help="of every experiment, a tenth of the slow ones")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(argv)
    begin, document = time.monotonic(), []
    for title, draw, equal, other, divisor in TABLES:
        runs = max(2, options.runs // divisor)
        same, different = (
            draw(np.random.default_rng([options.seed, i]), runs, rate) for i, rate in enumerate((equal, other))
        )
        rows, figures = [], {}
        for rule in same:
            error = share_and_error(float(np.isfinite(same[rule]).mean()), runs)
            power = share_and_error(float(np.isfinite(different[rule]).mean()), runs)
            times = different[rule][np.isfinite(different[rule])]
            after = f"{times.mean():.1f}" if times.size and divisor == 1 else "-"
            figures[rule] = {
                "equal": error,
                "different": power,
                "mean_when_found": float(times.mean()) if times.size else None,
            }
            rows.append([rule, share_text(error), share_text(power), after])
        print(
            table(f"{title} ({runs:,} runs)", ["rule", "equal", "different", "found after"], rows),
            end="\n\n",
            flush=True,
        )
        document.append({"table": title, "runs": runs, "rules": figures})
    machine: dict[str, Any] = {**describe(), "scipy": importlib.metadata.version("scipy")}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "evidence.json"
    settings = {"runs": options.runs, "seed": options.seed}
    path.write_text(
        json.dumps({"benchmark": "evidence", "machine": machine, "settings": settings, "tables": document}) + "\n"
    )
    print(f"{time.monotonic() - begin:.0f} s; {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
