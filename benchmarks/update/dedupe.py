# SPDX-License-Identifier: Apache-2.0
"""What one more version costs on a robot's disk, by what a store could share: files, shards, tensors."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import Table
from benchmarks.update.finetunes import BASE
from vla_checkpoint import read_header, sha256_bytes

SHARDS = 8
COLUMNS = (
    ("file", "one file", ".1f"),
    ("shards", f"{SHARDS} shards", ".1f"),
    ("tensors", "tensor blobs, or reflinks", ".1f"),
)


def measure(folder: Path, names: list[str], dtype: str) -> Table:
    """Return a table: % of a version's bytes that the next one adds to the disk."""
    table = Table(f"What a version adds to the disk beside the one before, % of its bytes, {dtype}", COLUMNS)
    old = _tensors(folder / f"{BASE}.{dtype}.safetensors")
    for name in names:
        new = _tensors(folder / f"{name}.{dtype}.safetensors")
        there = {digest for digest, _ in old}
        total = sum(size for _, size in new)
        shards_there = {shard for shard, _ in _shards(old)}
        table.row("weights", name).add(
            file=0.0 if new == old else 100.0,
            shards=100 * sum(size for shard, size in _shards(new) if shard not in shards_there) / total,
            tensors=100 * sum(size for digest, size in new if digest not in there) / total,
        )
    return table


def _tensors(path: Path) -> list[tuple[str, int]]:
    """Return SHA-256 and size of each tensor, in the file's order."""
    data, infos = path.read_bytes(), sorted(read_header(path).tensors.values(), key=lambda info: info.start)
    return [(sha256_bytes(data[info.start : info.end]), info.nbytes) for info in infos]


def _shards(tensors: list[tuple[str, int]]) -> list[tuple[tuple[str, ...], int]]:
    """Cut a file into shards in its order; return what each holds, and its size."""
    most = sum(size for _, size in tensors) / SHARDS
    found: list[tuple[list[str], int]] = [([], 0)]
    for digest, size in tensors:
        digests, held = found[-1]
        if digests and held + size > most:
            found.append(([digest], size))
        else:
            found[-1] = ([*digests, digest], held + size)
    return [(tuple(digests), size) for digests, size in found]
