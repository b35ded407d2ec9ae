# SPDX-License-Identifier: Apache-2.0
"""A store looked through and repaired while no manager runs: ``vla-checkpoint fsck STORE``.

Opening the store is the quick form, and every start of a manager does that: what a crash left is swept up, ``state.json`` and
``current`` are made whole. Here every byte is read as well, and what is damaged is put together from whatever name still has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vla_checkpoint import MANIFEST_NAME, Manifest
from vla_checkpoint.errors import FileError
from vla_ota_manager.errors import OtaError, RefusedError, StoreError
from vla_ota_manager.records import DIGEST, Ref
from vla_ota_manager.store.blobs import BlobStore
from vla_ota_manager.store.damage import file_problem, find_damage
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.scrub import is_version
from vla_ota_manager.store.state import State
from vla_ota_manager.store.store import STATE, Store
from vla_ros.plain import printable

WHOLE, REPAIRED, DAMAGED = "whole", "repaired", "damaged"
ALL = "all of it"


@dataclass
class Found:
    """How a version was found."""

    version: str
    """Name and version."""
    role: str = ""
    """``committed``, ``previous``, ``needed`` (pinned, or by what is under way), or empty."""
    state: str = WHOLE
    problems: list[str] = field(default_factory=list)
    fetch: list[str] = field(default_factory=list)
    """Files that no name on the disk has any more."""


def run(folder: Path, blob_dir: Path | None) -> dict[str, Any]:
    """Check and repair a store; return the report as JSON values.

    Args:
        folder: the manager's ``store_dir``.
        blob_dir: the manager's, if it has one.

    Raises:
        CheckpointError: STORE_LOCKED while a manager runs; STORE_LAYOUT if this is no store; see :meth:`Store.open`.
    """
    try:
        _refuse_others(folder, blob_dir)
        store = Store(folder, Filesystem(), blob_dir)
        store.open()
        try:
            return check_store(store)
        finally:
            store.close()
    except OtaError as e:
        raise FileError(e.code, e.where or folder, e.reason) from e


def _refuse_others(folder: Path, blob_dir: Path | None) -> None:
    """Refuse what opening would turn into a store, and what another user's manager could not read afterwards."""
    if not ((folder / "models").is_dir() or (folder / STATE).is_file()):
        raise StoreError("STORE_LAYOUT", f"is no store of a manager: it has neither models/ nor {STATE}", str(folder))
    if blob_dir is None and not (folder / "blobs").is_dir():
        raise StoreError("STORE_LAYOUT", "has no blobs/: name the manager's blob_dir by --blob-dir", str(folder))
    owner = folder.stat().st_uid
    if owner != os.geteuid():
        what = f"belongs to user {owner}, this is user {os.geteuid()}: run it as the manager's user"
        raise StoreError("STORE_IO", what, str(folder))


def check_store(store: Store) -> dict[str, Any]:
    """Check and repair an open store."""
    downloads = {path.name.split(".")[0] for path in store.blobs.partial_dir.iterdir()}
    needed, versions, intact = _needed(store.state), [], set()
    for folder in sorted(filter(is_version, store.folders())):
        ref = next((ref for ref in needed if store.path_of(ref) == folder), None)
        found = _check(store, folder, ref)
        found.role = needed.pop(ref, "") if ref is not None else ""
        if found.state != DAMAGED:
            intact |= {entry.stat().st_ino for entry in folder.rglob("*")}
        versions.append(found)
    for ref, role in needed.items():
        versions.append(Found(f"{ref.name} {ref.version}", role, DAMAGED, ["is not on the disk"], [ALL]))
    store.blobs.release(downloads)  # what repairs have held on to has links of its own now
    dropped = _drop_damaged_blobs(store.blobs, intact)
    return {
        "ok": all(found.state != DAMAGED for found in versions),
        "versions": [asdict(found) for found in versions],
        "repaired": [*store.recovery_notes, *(f"blob {name} was damaged and is dropped" for name in dropped)],
    }


def _needed(state: State) -> dict[Ref, str]:
    """Return the versions that must be on the disk, and what for."""
    needed = dict.fromkeys(replace(state, update=None).references(), "needed")
    roles = {"previous": state.previous, "committed": state.committed}
    return {**needed, **{ref: role for role, ref in roles.items() if ref is not None}}


def _check(store: Store, folder: Path, ref: Ref | None) -> Found:
    digest = ref.digest if ref is not None else ""
    found = Found(f"{folder.parent.name} {folder.name}", problems=list(find_damage(folder, digest=digest)))
    if found.problems:
        manifest = store.manifest_at(folder)
        if manifest is None:
            found.fetch = [MANIFEST_NAME]
        elif digest not in ("", manifest.digest):
            found.fetch = [ALL]
        else:
            found.fetch = _repair(store, folder, manifest, found.problems)
        found.state = DAMAGED if any(find_damage(folder, digest=digest)) else REPAIRED
    return found


def _repair(store: Store, folder: Path, manifest: Manifest, problems: list[str]) -> list[str]:
    """Put a version together again from what is intact under any name; return the files that are lost."""
    lost = [e.path for e in manifest.files if not store.blobs.rescue(e.sha256, e.size, folder / e.path, lambda: False)]
    if not lost:
        try:
            with store.staged(manifest) as staged:
                store.install(staged, manifest)
        except RefusedError as e:
            problems.append(str(e))
    return lost


def _drop_damaged_blobs(blobs: BlobStore, intact: set[int]) -> list[str]:
    """Let go of finished files that are not what their name says, so that no update takes them for it."""
    dropped = []
    for path in (*blobs.blob_dir.iterdir(), *blobs.partial_dir.iterdir()):
        entry = path.lstat()
        unfinished = path.parent == blobs.partial_dir and entry.st_mode & 0o222
        if not DIGEST.fullmatch(path.name) or unfinished or entry.st_ino in intact:
            continue
        intact.add(entry.st_ino)
        if file_problem(path, entry.st_size, path.name):
            blobs.drop(path.name)
            dropped.append(path.name)
    return dropped


def text_of(report: dict[str, Any]) -> str:
    """Return the report as lines."""
    return "\n".join(_lines(report)) or "no version is in this store"


def _lines(report: dict[str, Any]) -> Iterator[str]:
    for found in report["versions"]:
        role = f" ({found['role']})" if found["role"] else ""
        what = "".join(f"\n         {printable(problem)}" for problem in found["problems"])
        again = ", ".join(map(printable, found["fetch"]))
        word = {WHOLE: "ok", REPAIRED: REPAIRED, DAMAGED: DAMAGED.upper()}[found["state"]]
        yield f"{word:8} {printable(found['version'])}{role}{what}" + (
            f"\n         fetch again: {again}" if again else ""
        )
    for note in report["repaired"]:
        yield f"repaired {printable(note)}"
