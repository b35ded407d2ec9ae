# SPDX-License-Identifier: Apache-2.0
"""The judges' error rates and speed beside other rules: ``python -m benchmarks.evidence --out build/bench``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.evidence import ab, canary, clusters, throughput
from benchmarks.evidence.montecarlo import Experiment, Samples, simulate
from benchmarks.evidence.tables import EstimateTable, Goal
from benchmarks.machine import describe

PARTS = ("canary", "ab", "clusters", "throughput")
RUNS, SEED = 20_000, 20261120


def main(argv: list[str] | None = None) -> int:
    """Run it; 0 also if a goal was missed (the last lines say so)."""
    arguments = _arguments(argv)
    begin = time.monotonic()
    machine = {**describe(), "scipy": importlib.metadata.version("scipy")}
    print(_sentence(machine, arguments), flush=True)
    timings = (
        throughput.measure(arguments.rounds, arguments.scale) if "throughput" in arguments.parts else ()
    )  # alone on the machine
    samples = simulate(experiments(arguments.parts), arguments.runs, arguments.seed, arguments.processes)
    found, tables = goals(arguments.parts, samples), estimate_tables(arguments.parts)
    if timings:
        found += throughput.goals(timings[0])
    print()
    for table in tables:
        print(f"**{table.title}**\n\n{table.markdown(samples)}\n" if arguments.markdown else table.text(samples))
    for timing in timings:
        print(timing.text())
    for goal in found:
        print(goal.line())
    document: dict[str, Any] = {
        "benchmark": "evidence",
        "machine": machine,
        "settings": {
            "runs": arguments.runs,
            "seed": arguments.seed,
            "quick": arguments.runs < RUNS,
            "parts": arguments.parts,
        },
        "tables": [table.to_json(samples) for table in tables],
        "timings": [timing.to_json() for timing in timings],
        "goals": [goal.to_json() for goal in found],
        "samples": {name: {m: s.to_json() for m, s in metrics.items()} for name, metrics in samples.items()},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "evidence.json"
    path.write_text(json.dumps(document) + "\n")
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 1024
    print(f"\n{time.monotonic() - begin:.0f} s, at most {peak} MB a process; every figure and its sample: {path}")
    if arguments.runs < RUNS:
        print(f"QUICK LOOK: {arguments.runs} runs instead of {RUNS}")
    return 0


def experiments(parts: list[str]) -> list[Experiment]:
    """Return what the parts simulate."""
    modules = [module for name, module in _SIMULATED.items() if name in parts]
    return [experiment for module in modules for experiment in module.experiments()]


def estimate_tables(parts: list[str]) -> list[EstimateTable]:
    """Return the tables of the parts."""
    modules = [module for name, module in _SIMULATED.items() if name in parts]
    return [table for module in modules for table in module.tables()]


def goals(parts: list[str], samples: Samples) -> list[Goal]:
    """Return the goals of what was simulated."""
    return [
        goal for name, module in (("canary", canary), ("ab", ab)) if name in parts for goal in module.goals(samples)
    ]


_SIMULATED = {"canary": canary, "ab": ab, "clusters": clusters}


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for evidence.json")
    parser.add_argument(
        "--runs",
        type=int,
        default=RUNS,
        help=f"of every experiment, more of the cheap ones; under {RUNS}: a quick look",
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, help="same seed, same figures, whatever the number of processes"
    )
    parser.add_argument("--processes", type=int, default=2, help="for the simulations")
    parser.add_argument("--rounds", type=int, default=5, help="of the timings")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the episodes that are timed; below 1: a quick look"
    )
    parser.add_argument("--markdown", action="store_true", help="print the estimates as a page has them")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    return parser.parse_args(argv)


def _sentence(machine: dict[str, Any], arguments: argparse.Namespace) -> str:
    text = (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_mb']} MB, Linux {machine['kernel']}, Python "
        f"{machine['python']}, numpy {machine['numpy']}, scipy {machine['scipy']}\n"
        f"at least {arguments.runs} runs of each experiment, seed {arguments.seed}; value ± Monte-Carlo standard error"
    )
    if machine["load_average"] > 0.5:
        text += f"\nNOT ALONE: load average {machine['load_average']:.1f} at the start; episodes a second are too low"
    return text


if __name__ == "__main__":
    sys.exit(main())
