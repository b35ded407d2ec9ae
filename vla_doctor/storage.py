# SPDX-License-Identifier: Apache-2.0
"""Whether the store is whole and writable, with room for more. Nothing in it is changed, and its lock is not taken."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_checkpoint.bundle import open_bundle
from vla_checkpoint.errors import CheckpointError
from vla_checkpoint.manifest import load_manifest
from vla_doctor.findings import Finding, ok, problem
from vla_doctor.machine import MIB, user_name
from vla_doctor.seen import with_defaults
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import StateError
from vla_ota_manager.store.state import MAX_BYTES, State
from vla_ota_manager.store.store import STATE
from vla_policy_node.contract.model import Contract
from vla_policy_node.errors import ContractError


def largest_bundle(store: Path) -> int:
    """Return the size of the largest bundle on disk [bytes]; 0 = there is none."""
    sizes = [0]
    for path in store.glob("models/*/*"):
        try:
            sizes.append(load_manifest(path).total_bytes)
        except (CheckpointError, OSError):
            continue  # the manager does not count it as a version either
    return max(sizes)


def check_store(
    store: Path, parameters: Mapping[str, Any] | None, contract: Contract | None, *, before_start: bool
) -> list[Finding]:
    """Judge a store.

    Args:
        store: its folder.
        parameters: of the manager; None = its defaults.
        contract: what the committed bundle must fit.
        before_start: do not report a folder that is not there yet.
    """
    what = f"store {store}"
    if not store.is_dir():
        if before_start and not store.exists():
            return [ok(what, "not there yet; ota_manager makes it")]
        return [problem("STORE_MISSING", what, "is not a folder")]
    settings = with_defaults(OtaConfig, parameters)
    findings = _check_writable(what, store)
    findings += _check_room(what, store, settings)
    state, more = _check_state(what, store)
    findings += more
    findings += _check_current(what, store, state, contract)
    findings += _check_partials(what, store, state)
    return findings


def _check_writable(what: str, store: Path) -> list[Finding]:
    try:
        with tempfile.TemporaryFile(dir=store) as file:  # without a name: gone when closed, whatever happens
            file.write(b"doctor")
            file.flush()
            os.fsync(file.fileno())
        if not os.access(store, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as e:
        return [problem("STORE_READ_ONLY", what, e.strerror or repr(e), user=user_name(), path=store)]
    return []


def _check_room(what: str, store: Path, settings: Mapping[str, Any]) -> list[Finding]:
    found = []
    blobs = Path(settings["blob_dir"]) if settings["blob_dir"] else store / "blobs"
    if blobs.exists() and blobs.stat().st_dev != store.stat().st_dev:
        found.append(problem("STORE_LAYOUT", what, f"{blobs} is on another file system"))
    free, floor, bundle = shutil.disk_usage(store).free, settings["min_free_bytes"], largest_bundle(store)
    text = f"{free // MIB} MiB free, {floor // MIB} must stay, largest bundle {bundle / MIB:.1f} MiB"
    if free <= floor:
        found.append(problem("DISK_SHORT", what, text, missing_mib=(floor + bundle - free) / MIB + 1))
    elif free < floor + bundle:
        found.append(problem("DISK_TIGHT", what, text, missing_mib=(floor + bundle - free) / MIB + 1))
    return found or [ok(what, text)]


def _check_state(what: str, store: Path) -> tuple[State | None, list[Finding]]:
    path = store / STATE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise StateError("STATE_CORRUPT", f"larger than {MAX_BYTES} bytes", STATE)
        return State.from_bytes(data), []
    except FileNotFoundError:
        if any(store.glob("models/*/*")):
            return None, [problem("STATE_MISSING", what, "there are versions, but no state.json")]
        return None, []
    except StateError as e:
        return None, [problem("STATE_CORRUPT", what, str(e))]
    except OSError as e:
        return None, [problem("STATE_CORRUPT", what, f"{STATE}: {e.strerror}")]


def _check_current(what: str, store: Path, state: State | None, contract: Contract | None) -> list[Finding]:
    link = store / "current"
    committed = state.committed if state is not None else None
    if not os.path.lexists(link):
        if committed is not None:
            return [problem("CURRENT_DIFFERS", what, f"there is no `current`; state.json says {committed}")]
        return [problem("CURRENT_MISSING", what, "there is no `current`")]
    try:
        bundle = open_bundle(link)
    except (CheckpointError, OSError, RuntimeError) as e:  # RuntimeError: links in a circle, before Python 3.13
        return [problem("CURRENT_BROKEN", what, f"`current`: {e}")]
    name = f"{bundle.manifest.name} {bundle.manifest.version}"
    found = []
    if committed is not None and committed.digest != bundle.digest:
        found.append(problem("CURRENT_DIFFERS", what, f"`current` is {name}, state.json says {committed}"))
    if contract is not None:
        try:
            contract.check_manifest(bundle.manifest)
        except ContractError as e:
            found.append(problem("CURRENT_UNFIT", what, f"{e.code}: {e}"))
    return found or [ok(what, f"`current` is {name}, complete")]


def _check_partials(what: str, store: Path, state: State | None) -> list[Finding]:
    if state is not None and state.update is not None:
        return []  # they belong to it
    sizes = [p.stat().st_size for p in _partials(store)]
    if not sizes:
        return []
    return [problem("PARTIALS_LEFT", what, f"{len(sizes)} interrupted downloads, {sum(sizes) / MIB:.1f} MiB")]


def _partials(store: Path) -> list[Path]:
    try:
        return [p for p in (store / "partial").iterdir() if len(p.name) == 64 and p.is_file()]
    except OSError:
        return []
