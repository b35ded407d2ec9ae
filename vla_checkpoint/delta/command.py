# SPDX-License-Identifier: Apache-2.0
"""``vla-checkpoint delta make | apply | info | offer``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vla_checkpoint.delta.apply import apply_to_file
from vla_checkpoint.delta.format import Codec, Delta, FileRef, read_delta
from vla_checkpoint.delta.make import make_delta
from vla_checkpoint.delta.offers import offer_deltas
from vla_checkpoint.digest import sha256_file
from vla_checkpoint.errors import DeltaError
from vla_checkpoint.files import Progress

ProgressOf = Callable[[int | None], Progress | None]


def add_command(commands: Any, text: Callable[[dict[str, Any]], str], progress: ProgressOf) -> None:
    """Add ``delta`` to a command line.

    Args:
        commands: what ``add_subparsers`` returned.
        text: turns a report into lines.
        progress: takes the bytes in all and returns what shows them.
    """
    delta = commands.add_parser("delta", help="send a safetensors file as what changed against another one")
    actions = delta.add_subparsers(dest="action", required=True)
    make = actions.add_parser("make", help="write the delta that makes TARGET of BASE")
    make.add_argument("base", type=Path, metavar="BASE", help="safetensors file, or a folder of shards")
    make.add_argument("target", type=Path, metavar="TARGET", help="the new safetensors file")
    make.add_argument("delta", type=Path, metavar="DELTA", help="the file to write")
    make.set_defaults(run=lambda options: _make(options, progress))
    apply = actions.add_parser("apply", help="make the target of a delta, checked against its SHA-256")
    apply.add_argument("base", type=Path, metavar="BASE", help="safetensors file, or a folder of shards")
    apply.add_argument("delta", type=Path, metavar="DELTA", help="the delta")
    apply.add_argument("out", type=Path, metavar="OUT", help="the file to write")
    apply.set_defaults(run=lambda options: _apply(options, progress))
    info = actions.add_parser("info", help="say what a delta is against, what it makes and how")
    info.add_argument("delta", type=Path, metavar="DELTA", help="the delta")
    info.set_defaults(run=lambda options: describe(read_delta(options.delta)))
    offer = actions.add_parser("offer", help="put the deltas between two bundles into a registry folder")
    offer.add_argument("old", type=Path, metavar="OLD", help="bundle that robots have")
    offer.add_argument("new", type=Path, metavar="NEW", help="bundle that they are to get, published in REGISTRY")
    offer.add_argument("registry", type=Path, metavar="REGISTRY", help="folder that a static server serves")
    offer.set_defaults(run=lambda o: offer_deltas(o.old, o.new, o.registry, progress=progress(None)))
    for action in (make, apply, info, offer):
        action.add_argument("--json", action="store_true", help="print one JSON object")
        action.set_defaults(text=text, report=False)


def describe(delta: Delta) -> dict[str, Any]:
    """Return what a person wants to know of a delta, as JSON values."""
    records = delta.records
    made = {}
    for codec in Codec:
        chosen = records[records["codec"] == codec]
        if len(chosen):
            made[codec.name.lower()] = f"{int(chosen['size'].sum())} bytes from {int(chosen['length'].sum())}"
    return {
        "target": delta.target.sha256,
        "target_bytes": delta.target.size,
        "bases": [f"{base.sha256} {base.size} bytes" for base in delta.bases],
        "delta_bytes": delta.size,
        "share": f"{100 * delta.size / max(1, delta.target.size):.2f} %",
        "made": made,
    }


def _make(options: argparse.Namespace, progress: ProgressOf) -> dict[str, Any]:
    show = progress(options.target.stat().st_size if options.target.is_file() else None)
    make_delta(list(_files(options.base)), options.target, options.delta, progress=show)
    return describe(read_delta(options.delta))


def _apply(options: argparse.Namespace, progress: ProgressOf) -> dict[str, Any]:
    delta = read_delta(options.delta)
    bases = [_find(base, options.base) for base in delta.bases]
    apply_to_file(options.delta, bases, options.out, progress=progress(delta.target.size))
    return {"target": delta.target.sha256, "bytes": delta.target.size}


def _files(base: Path) -> Iterator[Path]:
    yield from sorted(base.glob("*.safetensors")) if base.is_dir() else [base]


def _find(ref: FileRef, base: Path) -> Path:
    for path in _files(base):
        if path.is_file() and path.stat().st_size == ref.size and sha256_file(path) == ref.sha256:
            return path
    raise DeltaError("DELTA_BASE", base, f"is not, or does not hold, the file {ref.sha256} that the delta is against")
