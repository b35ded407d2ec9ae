# SPDX-License-Identifier: Apache-2.0
"""Merged LoRA adapters: exactness, speed and memory beside PEFT, and bad clients.

    python -m benchmarks.merge --out build/bench

Every way of merging runs in a process of its own, on the same adapters. Peak memory is what the process needs above what it held
when the merge began (``VmHWM``, reset before).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe, sentence
from benchmarks.results import Table, finish
from vla_learning.adapters.lowrank import FloatArray, LowRank, difference, gram, recompress, weighted_sum
from vla_learning.adapters.robust import clip_factors, geometric_median, multi_krum

CLIENTS, RANK, SIZE = 10, 16, 2048
SEED = 20261122
_TIMEOUT_S = 600.0
OURS_EXACT, OURS_SMALL, OURS_WHOLE = "ours, exact", "ours, recompressed", "ours, with its certificate's figures"
PEFT_CAT, PEFT_SVD, PEFT_THIN = "PEFT cat", "PEFT svd (its default)", "PEFT svd, thin matrices"
AVERAGED = "A and B averaged apart"
EXACT_WAYS = (OURS_EXACT, PEFT_CAT, AVERAGED)
SMALL_WAYS = (OURS_SMALL, OURS_WHOLE, PEFT_SVD, PEFT_THIN)
SCALES = {"alpha/r": RANK / RANK, "rsLoRA, alpha/√r": RANK / math.sqrt(RANK)}


def clients(size: int) -> list[tuple[FloatArray, FloatArray]]:
    """Return the factors B ``[size, r]`` and A ``[r, size]`` of every client, which float32 holds exactly."""
    rng = np.random.default_rng(SEED)
    shapes = (size, RANK), (RANK, size)
    pairs = ([rng.standard_normal(shape, np.float32).astype(np.float64) for shape in shapes] for _ in range(CLIENTS))
    return [(b, a) for b, a in pairs]


def ours(way: str, size: int, scale: float) -> Callable[[], LowRank]:
    """Return a merge by our code."""
    parts = [LowRank(scale * b, a) for b, a in clients(size)]
    weights = [1.0 / CLIENTS] * CLIENTS

    def run() -> LowRank:
        whole = weighted_sum(parts, weights)
        if way == OURS_EXACT:
            return whole
        small, _ = recompress(whole, RANK)
        if way == OURS_WHOLE:
            gram(parts)
            difference(small, whole)
        return small

    return run


def averaged(size: int, scale: float) -> Callable[[], LowRank]:
    """Return FedAvg on the factors."""
    found = clients(size)

    def run() -> LowRank:
        b, a = (np.mean([pair[side] for pair in found], axis=0) for side in (0, 1))
        return LowRank(scale * b, a)

    return run


def peft(way: str, size: int, rslora: bool) -> Callable[[], LowRank]:
    """Return a merge by PEFT's ``add_weighted_adapter``."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(size, size, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layer(x)
            return result

    names = [f"c{i}" for i in range(CLIENTS)]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["layer"], use_rslora=rslora)
    model: Any = get_peft_model(Net(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    layer = model.base_model.model.layer
    for name, (b, a) in zip(names, clients(size), strict=True):
        layer.lora_B[name].weight.data = torch.from_numpy(b).float()
        layer.lora_A[name].weight.data = torch.from_numpy(a).float()
    ways: dict[str, dict[str, Any]] = {
        PEFT_CAT: {"combination_type": "cat"},
        PEFT_SVD: {"combination_type": "svd", "svd_rank": RANK},
        PEFT_THIN: {"combination_type": "svd", "svd_rank": RANK, "svd_full_matrices": False},
    }
    options = ways[way]

    def run() -> LowRank:
        if "merged" in model.peft_config:
            model.delete_adapter("merged")
        model.add_weighted_adapter(names, [1.0 / CLIENTS] * CLIENTS, "merged", **options)
        b, a = (side["merged"].weight.data.double().numpy() for side in (layer.lora_B, layer.lora_A))
        return LowRank(layer.scaling["merged"] * b, a)

    return run


def measure(way: str, size: int, scaling: str, repeats: int) -> dict[str, Any]:
    """Run one way in this process; return seconds, megabytes and the relative error against the dense sum in float64."""
    scale = SCALES[scaling]
    if way == AVERAGED:
        run = averaged(size, scale)
    elif way.startswith("PEFT"):
        run = peft(way, size, scale != 1.0)
    else:
        run = ours(way, size, scale)
    result = run()  # warm-up
    before = _reset_peak()
    run()
    memory = _status("VmHWM") - before
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    wanted = scale / CLIENTS * np.sum([b @ a for b, a in clients(size)], axis=0)
    found = result.b @ result.a
    figures = {"seconds": seconds, "memory_mb": memory, "error": _relative(found, wanted)}
    if way in EXACT_WAYS:
        written = result.b.astype(np.float32), result.a.astype(np.float32)
        figures["error32"] = _relative(np.matmul(*(side.astype(np.float64) for side in written)), wanted)
    return figures


def _relative(found: FloatArray, wanted: FloatArray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    return _status("VmRSS")


def _status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return float(line.split()[1]) / 1024


def in_process(way: str, size: int, scaling: str, repeats: int) -> dict[str, Any]:
    """Run :func:`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.merge", "--measure", way, "--size", str(size)]
    command += ["--scaling", scaling, "--repeats", str(repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def speed_and_exactness(size: int, runs: int, repeats: int) -> list[Table]:
    """Return the tables beside PEFT."""
    exact = Table(
        f"{CLIENTS} adapters of rank {RANK} on {size}×{size}, merged without loss: relative error against the dense sum",
        [("error", "factors as computed", ".1e"), ("error32", "factors written as float32", ".1e"),
         ("ms", "time [ms]", ".1f"), ("memory", "peak memory [MB]", ".0f")],
    )  # fmt: skip
    small = Table(
        f"the same, recompressed to rank {RANK}",
        [("error", "relative error", ".4f"), ("ms", "time [ms]", ".1f"), ("memory", "peak memory [MB]", ".0f")],
    )
    for _ in range(runs):
        for scaling in SCALES:
            for way in EXACT_WAYS:
                found = in_process(way, size, scaling, repeats)
                exact.row(way, scaling).add(error=found["error"], error32=found["error32"], **_costs(found))
        for way in SMALL_WAYS:
            found = in_process(way, size, "alpha/r", repeats)
            small.row(way).add(error=found["error"], **_costs(found))
    for peer in (PEFT_SVD, PEFT_THIN):
        small.note_ratio("ms", peer, OURS_SMALL, "time")
        small.note_ratio("memory", peer, OURS_SMALL, "peak memory")
    return [exact, small]


def _costs(found: dict[str, Any]) -> dict[str, float]:
    return {"ms": 1e3 * float(np.median(found["seconds"])), "memory": found["memory_mb"]}


Attack = Callable[[Sequence[LowRank], np.random.Generator], LowRank]


def _opposite(strength: float) -> Attack:
    def attack(good: Sequence[LowRank], rng: np.random.Generator) -> LowRank:
        return weighted_sum(good, [-strength / len(good)] * len(good))

    return attack


def _noise(good: Sequence[LowRank], rng: np.random.Generator) -> LowRank:
    one = good[0]
    noise = LowRank(rng.standard_normal(one.b.shape), rng.standard_normal(one.a.shape))
    return LowRank(noise.b * (10.0 * one.norm() / noise.norm()), noise.a)


ATTACKS: dict[str, Attack] = {
    "ten times the opposite": _opposite(10.0),
    "noise, ten times as long": _noise,
    "half the opposite (IPM)": _opposite(0.5),
}
"""What two colluding clients send, who know the eight others. IPM: Xie, Koyejo and Gupta, arXiv 1903.03936."""
RULES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "mean": lambda products: np.full(CLIENTS, 1 / CLIENTS),
    "mean, norms clipped to the median": lambda products: clip_factors(products, 1.0) / CLIENTS,
    "geometric median": lambda products: geometric_median(products, np.full(CLIENTS, 1 / CLIENTS)),
    "multi-Krum, f = 2": lambda products: multi_krum(products, np.full(CLIENTS, 1 / CLIENTS), 2),
}
DRIFTS = {"alike": 0.2, "unlike": 1.0}
_ROBUST_SIZE, _BAD = 128, 2


def bad_clients(draws: int) -> Table:
    """Return the error of each rule against the mean of the good clients."""
    table = Table(
        f"{_BAD} bad clients of {CLIENTS}: relative error against the mean of the good ones, {draws} draws",
        [(name, f"good ones {name} (drift {drift})", ".3f") for name, drift in DRIFTS.items()],
    )
    for draw in range(draws):
        for condition, attack in {"none is bad": None, **ATTACKS}.items():
            for name, drift in DRIFTS.items():
                rng = np.random.default_rng([SEED, draw])
                common = _factors(rng)
                good = [
                    LowRank(common.b + drift * more.b, common.a + drift * more.a)
                    for more in (_factors(rng) for _ in range(CLIENTS - _BAD * (attack is not None)))
                ]
                parts = good if attack is None else [*good, *[attack(good, rng)] * _BAD]
                wanted = weighted_sum(good, [1 / len(good)] * len(good))
                for rule, weigh in RULES.items():
                    found = weighted_sum(parts, [float(w) for w in weigh(gram(parts))])
                    table.row(rule, condition).add(**{name: difference(found, wanted) / wanted.norm()})
    return table


def _factors(rng: np.random.Generator) -> LowRank:
    return LowRank(rng.standard_normal((_ROBUST_SIZE, RANK)), rng.standard_normal((RANK, _ROBUST_SIZE)))


def main(argv: list[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for merge.json")
    parser.add_argument("--runs", type=int, default=3, help="processes for each way")
    parser.add_argument("--repeats", type=int, default=5, help="merges in each process; their median counts")
    parser.add_argument("--draws", type=int, default=20, help="of clients, good and bad")
    parser.add_argument("--size", type=int, default=SIZE, help="of the layer")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--scaling", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measure(options.measure, options.size, options.scaling, options.repeats)))
        return 0
    machine = {**describe(), "peft": importlib.metadata.version("peft")}
    print(f"{sentence(machine)}, PEFT {machine['peft']}\n", flush=True)
    tables = [*speed_and_exactness(options.size, options.runs, options.repeats), bad_clients(options.draws)]
    settings = {name: getattr(options, name) for name in ("runs", "repeats", "draws", "size")}
    finish("merge", options.out, machine, {**settings, "clients": CLIENTS, "rank": RANK, "seed": SEED}, tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
