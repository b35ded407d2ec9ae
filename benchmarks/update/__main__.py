# SPDX-License-Identifier: Apache-2.0
"""Size and speed of tensor deltas beside other ways, on real fine-tunes; every row is applied and compared byte for byte.

    python -m benchmarks.update --out build/bench [--small] [--slow]

Sizes are exact. Speeds are those of this machine in this minute, target bytes a second.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import describe, sentence
from benchmarks.results import Table, finish
from benchmarks.update import dedupe
from benchmarks.update.codecs import PEERS, ours, ways
from benchmarks.update.finetunes import BASE, DTYPES, FULL, SMALL, make
from vla_checkpoint.delta import read_delta

OURS = "vla-checkpoint delta"
ZIPNN = "ZipNN, delta mode"
GOAL = "lr1e-5x300"
"""The fine-tune that the goals are about."""
SLOW = ("zstd -19 --patch-from", "bsdiff4", "xdelta3")
"""They take minutes: on the goal's fine-tune in bf16 only, if nobody asks for more."""

_APPLY = """
import re, sys
from vla_checkpoint.cli import main
main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def measure(folder: Path, names: list[str], dtype: str, *, slow: bool) -> Table:
    """Return a table of one dtype."""
    columns = [("share", "% of the file", ".1f"), ("make", "make, MB/s", ".0f"), ("apply", "apply, MB/s", ".0f")]
    table = Table(f"Updates of a transformer, {dtype}", columns)
    base = folder / f"{BASE}.{dtype}.safetensors"
    old = base.read_bytes()
    for name in names:
        target = folder / f"{name}.{dtype}.safetensors"
        new = target.read_bytes()
        for way, (encode, decode) in ways(dtype).items():
            if way in SLOW and not slow and (name, dtype) != (GOAL, "bf16"):
                continue
            begin = time.monotonic()
            sent = encode(old, new)
            between = time.monotonic()
            if decode(old, sent) != new:
                raise AssertionError(f"{way} does not make {name}")
            _add(table, way, name, len(sent), len(new), between - begin, time.monotonic() - between)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            delta = Path(scratch) / "delta"
            begin = time.monotonic()
            apply = ours(base, target, delta)
            between = time.monotonic()
            if apply() != new:
                raise AssertionError(f"{OURS} does not make {name}")
            _add(table, OURS, name, read_delta(delta).size, len(new), between - begin, time.monotonic() - between)
    return table


def _add(table: Table, way: str, name: str, sent: int, size: int, making: float, applying: float) -> None:
    print(f"  {table.title}, {name}, {way}: {100 * sent / size:.2f} %", file=sys.stderr, flush=True)
    table.row(way, name).add(share=100 * sent / size, make=size / 1e6 / making, apply=size / 1e6 / applying)


def not_here() -> str:
    """Return which peers are not measured, because they are not installed."""
    absent = [name for name, (package, _) in PEERS.items() if importlib.util.find_spec(package) is None]
    return f"not installed, so not measured: {', '.join(absent)}" if absent else ""


def apply_memory(folder: Path, dtype: str) -> float:
    """Return the peak of a process that applies the goal's delta, interpreter and libraries included [MB]."""
    base, target = (folder / f"{name}.{dtype}.safetensors" for name in (BASE, GOAL))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        ours(base, target, Path(scratch, "delta"))
        delta, out = Path(scratch, "delta"), Path(scratch, "out")
        command = [sys.executable, "-c", _APPLY, "delta", "apply", str(base), str(delta), str(out)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        if out.read_bytes() != target.read_bytes():
            raise AssertionError("delta apply does not make the target")
    return int(done.stdout.split()[-1]) * 1024 / 1e6


def goals(tables: dict[str, Table], memory_mb: float) -> Iterator[str]:
    """Yield what issue 13 asks of these figures, and whether it is so."""

    def figure(dtype: str, way: str, name: str, metric: str = "share") -> float:
        rows = [row for row in tables[dtype].rows if (row.way, row.condition) == (way, name)]
        return statistics.median(rows[0].values[metric]) if rows else float("nan")

    for what, found, wanted, most in (
        (f"bf16, {GOAL}, % of the file", figure("bf16", OURS, GOAL), 24.0, True),
        (f"bf16, {GOAL}, bsdiff4 ÷ ours", figure("bf16", "bsdiff4", GOAL) / figure("bf16", OURS, GOAL), 1.45, False),
        (f"bf16, {GOAL}, ZipNN ÷ ours", figure("bf16", ZIPNN, GOAL) / figure("bf16", OURS, GOAL), 1.6, False),
        ("bf16, frozen backbone, % of the file", figure("bf16", OURS, "frozenx300"), 8.0, True),
        (f"fp32, {GOAL}, ZipNN ÷ ours", figure("fp32", ZIPNN, GOAL) / figure("fp32", OURS, GOAL), 1.15, False),
        (f"bf16, {GOAL}, make, MB/s", figure("bf16", OURS, GOAL, "make"), 150.0, False),
        (f"bf16, {GOAL}, apply, MB/s", figure("bf16", OURS, GOAL, "apply"), 150.0, False),
        ("apply, peak memory, MB", memory_mb, 200.0, True),
    ):
        held = found <= wanted if most else found >= wanted
        bound = f"{'at most' if most else 'at least'} {wanted:g}"
        yield f"{'met' if held else 'not measured' if found != found else 'MISSED':12} {what}: {found:.3g}, {bound}"


def main() -> int:
    """Train what is not there yet, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the JSON file")
    parser.add_argument(
        "--small", action="store_true", help="a small model, a few steps: whether it runs, not how well"
    )
    parser.add_argument("--slow", action="store_true", help="the peers that take minutes on every fine-tune")
    arguments = parser.parse_args()
    machine = describe()
    print(sentence(machine), flush=True)
    size = SMALL if arguments.small else FULL
    folder = arguments.out / ("finetunes-small" if arguments.small else "finetunes")
    names = make(folder, size, lambda text: print(f"  {text}", file=sys.stderr, flush=True))
    tables = {dtype: measure(folder, names, dtype, slow=arguments.slow) for dtype in DTYPES}
    tables["bf16"].notes += [note for note in [not_here()] if note]
    if not arguments.small:
        tables["bf16"].notes += goals(tables, apply_memory(folder, "bf16"))
    finish(
        "update",
        arguments.out,
        machine,
        {"model": asdict(size)},
        [*tables.values(), dedupe.measure(folder, names, "bf16")],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
