# SPDX-License-Identifier: Apache-2.0
"""Episodes a second, beside other ways of looking at the same counts after every episode, and the memory of ten million.

Run by itself it is the process whose memory is measured: ``python -m benchmarks.evidence.throughput EPISODES``.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, fisher_exact  # type: ignore[import-untyped]

from benchmarks.evidence.tables import Goal
from benchmarks.results import Table
from vla_evidence.canary.config import CanaryConfig
from vla_evidence.canary.judge import CanaryJudge
from vla_evidence.sequential.sign_test import ExactSignTest, SignTestDesign
from vla_evidence.sequential.two_sample import TwoSampleEProcess

BATCH, SINGLE, SLOW, MANY = 2_000_000, 50_000, 400, 10_000_000
PROBABILITY, RATE, WORSE_RATE = 0.05, 0.87, 0.75
OURS_BATCH, OURS_MARGIN_BATCH = "ours, in batch", "ours, in batch, margin 0.02"
OURS_SINGLE, OURS_MARGIN_SINGLE = "ours, one by one", "ours, one by one, margin 0.02"
JUDGE = "ours, whole canary judge, assigned and finished one by one"
SIGN_TEST = "ours, exact sign test, pair by pair"
PYTHON_Z, FISHER, BINOM = "z test in plain Python", "scipy's fisher_exact", "scipy's binomtest"
_PART = 1_000_000
_TIMEOUT_S = 300.0


def measure(rounds: int, scale: float = 1.0) -> tuple[Table, Table]:
    """Time every way in turn, ``rounds`` times; ``scale`` below 1 for a quick look."""
    speed = Table("Episodes a second, one process", (("per_s", "episodes/s", ",.0f"),))
    memory = Table(
        f"{MANY * scale / 1e6:g} million episodes through update_many, in parts of a million",
        (
            ("grown_mb", "memory they took, MB", ".0f"),
            ("peak_mb", "peak of the whole process, MB", ".0f"),
            ("per_s", "episodes/s", ",.0f"),
        ),
    )
    for _ in range(rounds):
        for name, (function, episodes) in _WAYS.items():
            groups, ys = _episodes(max(10, int(episodes * scale)), np.random.default_rng(1))
            begin = time.perf_counter()
            function(groups, ys)
            speed.row(name).add(per_s=len(groups) / (time.perf_counter() - begin))
    command = [sys.executable, "-m", "benchmarks.evidence.throughput", str(int(MANY * scale))]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S).stdout)
    memory.row("ours").add(**found)
    for peer in (PYTHON_Z, FISHER, BINOM):
        speed.note_ratio("per_s", OURS_SINGLE, peer, "episodes/s")
        speed.note_ratio("per_s", OURS_BATCH, peer, "episodes/s")
    speed.notes.append("The z test and scipy's tests look after every episode too, as if each look were the only one.")
    return speed, memory


def goals(speed: Table) -> list[Goal]:
    """Return what was promised and the slowest round of it."""
    return [
        Goal(f"{name} (slowest round)", min(speed.row(name).values["per_s"]), limit, False, unit="episodes/s")
        for name, limit in (
            (OURS_BATCH, 200_000.0),
            (OURS_MARGIN_BATCH, 200_000.0),
            (OURS_SINGLE, 20_000.0),
            (OURS_MARGIN_SINGLE, 20_000.0),
            (JUDGE, 20_000.0),
        )
    ]


def _episodes(number: int, rng: np.random.Generator) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Return groups and successes of a worse canary: evidence moves at every episode, and that costs the most."""
    groups = (rng.random(number) < PROBABILITY).astype(np.int8)
    return groups, rng.random(number) < np.where(groups == 1, WORSE_RATE, RATE)


def _batch(margin: float) -> Callable[[NDArray[np.int8], NDArray[np.bool_]], object]:
    return lambda groups, ys: TwoSampleEProcess(margin).update_many(groups, ys, PROBABILITY)


def _single(margin: float) -> Callable[[NDArray[np.int8], NDArray[np.bool_]], object]:
    def run(groups: NDArray[np.int8], ys: NDArray[np.bool_]) -> None:
        process = TwoSampleEProcess(margin)
        for group, y in zip(groups.tolist(), ys.tolist(), strict=True):
            process.update(group, y, PROBABILITY)

    return run


def _judge(groups: NDArray[np.int8], ys: NDArray[np.bool_]) -> None:
    """Every hundredth episode a verdict is asked for."""
    judge = CanaryJudge(CanaryConfig())
    judge.begin_stage(0, 0.0)
    for index, (group, y) in enumerate(zip(groups.tolist(), ys.tolist(), strict=True)):
        judge.assign(str(index), "robot", group, float(index), PROBABILITY)
        judge.finish(str(index), y, float(index))
        if index % 100 == 99:
            judge.verdict(float(index))


def _sign_test(groups: NDArray[np.int8], ys: NDArray[np.bool_]) -> None:
    """Pairs of two episodes in a row; the test of 500 pairs begins anew when it has ended."""
    design = SignTestDesign(500)
    test = ExactSignTest(design)
    signs = ys[1::2].astype(np.int8) - ys[: len(ys) // 2 * 2 : 2]
    for sign in signs.tolist():
        test.update(sign)
        if test.ended:
            test = ExactSignTest(design)


def _counts(groups: NDArray[np.int8], ys: NDArray[np.bool_], look: Callable[[int, int, int, int], object]) -> None:
    """Call ``look(successes, failures of the canary, of the incumbent)`` after every episode."""
    table = [[0, 0], [0, 0]]
    for group, y in zip(groups.tolist(), ys.tolist(), strict=True):
        table[group][not y] += 1
        look(*table[1], *table[0])


def _z_look(successes: int, failures: int, others: int, other_failures: int) -> float:
    n1, n0 = successes + failures, others + other_failures
    pooled = (successes + others) / (n1 + n0)
    if n1 == 0 or n0 == 0 or not 0.0 < pooled < 1.0:
        return 0.5
    z = (successes / n1 - others / n0) / math.sqrt(pooled * (1.0 - pooled) * (1.0 / n1 + 1.0 / n0))
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def _fisher_look(successes: int, failures: int, others: int, other_failures: int) -> float:
    return float(fisher_exact([[successes, failures], [others, other_failures]], alternative="less").pvalue)


def _binom_look(successes: int, failures: int, others: int, other_failures: int) -> float:
    done = successes + failures
    return float(binomtest(successes, done, RATE, alternative="less").pvalue) if done else 1.0


_WAYS: dict[str, tuple[Callable[[NDArray[np.int8], NDArray[np.bool_]], object], int]] = {
    OURS_BATCH: (_batch(0.0), BATCH),
    OURS_MARGIN_BATCH: (_batch(0.02), BATCH),
    OURS_SINGLE: (_single(0.0), SINGLE),
    OURS_MARGIN_SINGLE: (_single(0.02), SINGLE),
    JUDGE: (_judge, SINGLE // 5),
    SIGN_TEST: (_sign_test, SINGLE),
    PYTHON_Z: (lambda groups, ys: _counts(groups, ys, _z_look), SINGLE),
    FISHER: (lambda groups, ys: _counts(groups, ys, _fisher_look), SLOW),
    BINOM: (lambda groups, ys: _counts(groups, ys, _binom_look), SLOW),
}


def _many(episodes: int) -> dict[str, float]:
    """Return the peak memory of this process, what of it came with the episodes, and the speed, making the data included."""
    process, rng = TwoSampleEProcess(), np.random.default_rng(1)
    before = _status_mb("VmRSS")
    begin = time.perf_counter()
    for start in range(0, episodes, _PART):
        process.update_many(*_episodes(min(_PART, episodes - start), rng), PROBABILITY)
    seconds = time.perf_counter() - begin
    peak = _status_mb("VmHWM")
    return {"peak_mb": peak, "grown_mb": peak - before, "per_s": episodes / seconds}


def _status_mb(key: str) -> float:
    """Return a figure of this process's memory; unlike ``ru_maxrss``, none is inherited from the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024.0


if __name__ == "__main__":
    print(json.dumps(_many(int(sys.argv[1]))))
