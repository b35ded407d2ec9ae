# SPDX-License-Identifier: Apache-2.0
"""Size and speed of tensor deltas beside other ways, on real fine-tunes; every row is applied and compared byte for byte.

    python -m benchmarks.update --out build/bench [--small]

Sizes are exact and the same on every machine. Speeds are those of this machine in this minute, target bytes a second.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import describe, sentence
from benchmarks.results import Table, finish
from benchmarks.update.codecs import ours, ways
from benchmarks.update.finetunes import BASE, DTYPES, FULL, SMALL, make
from vla_checkpoint.delta import read_delta

OURS = "vla-checkpoint delta"
SLOW = ("zstd -19 --patch-from", "bsdiff4")
WIDTHS = {"bf16": 2, "fp32": 4}


def measure(folder: Path, names: list[str], dtype: str, *, slow: bool) -> Table:
    """Return a table of one dtype."""
    columns = [("share", "% of the file", ".1f"), ("make", "make, MB/s", ".0f"), ("apply", "apply, MB/s", ".0f")]
    table = Table(f"Updates of a transformer, {dtype}", columns)
    base = folder / f"{BASE}.{dtype}.safetensors"
    old = base.read_bytes()
    for name in names:
        target = folder / f"{name}.{dtype}.safetensors"
        new = target.read_bytes()
        for way, (encode, decode) in ways(WIDTHS[dtype]).items():
            if way in SLOW and not slow:
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
    absent = [name for name in ("bsdiff4", "zipnn") if importlib.util.find_spec(name) is None]
    absent += [] if shutil.which("xdelta3") else ["xdelta3"]
    return f"not installed, so not measured: {', '.join(absent)}" if absent else ""


def main() -> int:
    """Train what is not there yet, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the JSON file")
    parser.add_argument(
        "--small", action="store_true", help="a small model, a few steps: whether it runs, not how well"
    )
    parser.add_argument("--slow", action="store_true", help="also the peers that take minutes")
    arguments = parser.parse_args()
    machine = describe()
    print(sentence(machine), flush=True)
    size = SMALL if arguments.small else FULL
    folder = arguments.out / ("finetunes-small" if arguments.small else "finetunes")
    names = make(folder, size, lambda text: print(f"  {text}", file=sys.stderr, flush=True))
    tables = [measure(folder, names, dtype, slow=arguments.slow) for dtype in DTYPES]
    if note := not_here():
        for table in tables:
            table.notes.append(note)
    finish("update", arguments.out, machine, {"model": asdict(size)}, tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
