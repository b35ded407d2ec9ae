# SPDX-License-Identifier: Apache-2.0
"""``deltas.json``: the deltas that a registry offers for the files of a version, beside its manifest.

It is no part of the bundle: deltas against other versions can be added later, and a wrong one costs a robot its bytes only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from vla_checkpoint import limits
from vla_checkpoint.delta.format import MAX_BASES, read_delta
from vla_checkpoint.delta.make import make_delta
from vla_checkpoint.digest import is_sha256, sha256_bytes, sha256_file
from vla_checkpoint.errors import DeltaError, FileError, JsonError
from vla_checkpoint.files import PathLike, Progress, read_bytes, write_atomically
from vla_checkpoint.manifest import Manifest, load_manifest
from vla_checkpoint.strict_json import is_int, parse_json

OFFERS_NAME = "deltas.json"
MIN_BYTES = 1 << 20
"""A smaller file is sent whole: it is not worth a request more [bytes]."""
_SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class Offer:
    """A delta that can be fetched."""

    target: str
    """SHA-256 of the file that it makes."""
    bases: tuple[str, ...]
    """SHA-256 of the files that it needs, in its order."""
    sha256: str
    """Of the delta."""
    size: int
    """Of the delta [bytes]."""


def parse_offers(data: bytes, path: PathLike) -> list[Offer]:
    """Read ``deltas.json``; ``path`` is for messages only. Raises ``DeltaError``: DELTA_FORMAT."""

    def refuse(reason: str) -> NoReturn:
        raise DeltaError("DELTA_FORMAT", path, reason)

    try:
        document = parse_json(data, path)
    except JsonError as e:
        raise DeltaError("DELTA_FORMAT", path, e.reason) from e
    if not isinstance(document, dict) or document.get("schema") != 1 or not isinstance(document.get("deltas"), list):
        refuse("must be an object with schema 1 and a list of deltas")
    found = []
    for entry in document["deltas"]:
        if not isinstance(entry, dict) or entry.keys() != {"target", "bases", "sha256", "size"}:
            refuse("a delta must have exactly target, bases, sha256 and size")
        bases = entry["bases"]
        if not isinstance(bases, list) or len(bases) > MAX_BASES:
            refuse(f"bases must be a list of up to {MAX_BASES} digests")
        if not all(is_sha256(digest) for digest in (entry["target"], entry["sha256"], *bases)):
            refuse("a digest must be 64 lower-case hexadecimal digits")
        if not is_int(entry["size"]) or not 0 < entry["size"] <= limits.FILE_BYTES:
            refuse("size of a delta is out of range")
        found.append(Offer(entry["target"], tuple(bases), entry["sha256"], entry["size"]))
    return found


def offer_deltas(old: Path, new: Path, registry: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Make the deltas between two bundles and put them into a registry folder; return what was offered, as JSON values.

    Args:
        old: bundle that robots have.
        new: bundle that they are to get; published in the registry.
        registry: folder with ``<name>/<version>/manifest.json`` and ``blobs/sha256/``, as any static server serves it.
        progress: called with the bytes of the new files that were coded.

    Raises:
        CheckpointError: a bundle cannot be read; FILE_MISSING: the registry does not have the new one.
    """
    before, after = load_manifest(old), load_manifest(new)
    home = registry / after.name / after.version
    if sha256_bytes(read_bytes(home / "manifest.json", limits.MANIFEST_BYTES)) != after.digest:
        raise DeltaError("DELTA_FORMAT", home, f"holds another manifest than {after.digest}: publish the bundle first")
    page = home / OFFERS_NAME
    offers = parse_offers(read_bytes(page, limits.JSON_BYTES), page) if page.exists() else []
    bases = [old / entry.path for entry in before.files if entry.path.endswith(_SAFETENSORS)]
    made, whole = 0, 0
    for path in _changed(before, after):
        offer = _make(bases, new / path, registry / "blobs" / "sha256", progress)
        whole += (new / path).stat().st_size
        made += offer.size
        offers = [o for o in offers if (o.target, o.bases) != (offer.target, offer.bases)] + [offer]
    document = {"schema": 1, "deltas": [asdict(offer) for offer in offers]}
    write_atomically(page, json.dumps(document, indent=1).encode())
    return {"name": after.name, "version": after.version, "against": before.version, "bytes": made, "instead_of": whole}


def _changed(before: Manifest, after: Manifest) -> Iterator[str]:
    there = {entry.sha256 for entry in before.files}
    for entry in after.files:
        if entry.path.endswith(_SAFETENSORS) and entry.sha256 not in there and entry.size >= MIN_BYTES:
            yield entry.path


def _make(bases: list[Path], target: Path, blobs: Path, progress: Progress | None) -> Offer:
    """Make one delta among the blobs, under its digest."""
    aside = blobs / f".{os.getpid()}.delta"
    try:
        make_delta(bases, target, aside, progress=progress)
        delta, sha256 = read_delta(aside), sha256_file(aside)
        aside.replace(blobs / sha256)
    except OSError as e:
        raise FileError("FILE_NOT_WRITTEN", blobs, e.strerror or str(e)) from e
    finally:
        aside.unlink(missing_ok=True)
    return Offer(delta.target.sha256, tuple(base.sha256 for base in delta.bases), sha256, delta.size)
