# SPDX-License-Identifier: Apache-2.0
"""Turning a LeRobot ``pretrained_model`` folder, or a local Hugging Face snapshot of one, into a bundle.

Weights are copied as they are. LeRobot <= 0.3 keeps statistics as buffers among the weights: they are written to ``stats.json``
too. LeRobot >= 0.4 keeps them in processor files, which a bundle may hold. A snapshot's links into ``blobs/`` become plain files.
What a bundle must not hold (pickles, code, hidden files, the training run's configuration) is left out and reported.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_checkpoint.build import build_manifest
from vla_checkpoint.bundle import Bundle, open_bundle, verify_bundle
from vla_checkpoint.config import ACTION, PolicyConfig, load_config
from vla_checkpoint.errors import CheckpointError, FileError, ImportFolderError
from vla_checkpoint.files import PathLike, Progress, write_atomically
from vla_checkpoint.folder import forbidden_name, list_folder
from vla_checkpoint.header import read_header
from vla_checkpoint.importing.merge import merge_adapter
from vla_checkpoint.importing.settle import settle
from vla_checkpoint.importing.source import find_source, link_roots, origin_of
from vla_checkpoint.importing.training import TRAIN_CONFIG_NAME
from vla_checkpoint.manifest import BaseRef, Channel, Manifest, write_manifest
from vla_checkpoint.paths import MANIFEST_NAME
from vla_checkpoint.processors import PROCESSOR_NAMES
from vla_checkpoint.shards import ADAPTER_WEIGHTS_NAME, find_weight_files
from vla_checkpoint.stats import STAT_NAMES, STATS_NAME
from vla_checkpoint.tensors import numpy_dtype, read_array

Accept = Callable[[Bundle], Sequence[str]]
"""Looks at the finished bundle before it appears; returns notes, or raises a CheckpointError to refuse it."""


@dataclass(frozen=True)
class ImportReport:
    """What an import made."""

    manifest: Manifest
    left_out: Mapping[str, str]
    """Relative path in the source → why it is not in the bundle."""
    notes: Sequence[str]
    """What was changed, and what of the checkpoint is not used."""


def import_folder(
    source: PathLike,
    out: PathLike,
    *,
    name: str,
    version: str,
    robot_type: str,
    channels: Sequence[Channel],
    rate_hz: float,
    base: BaseRef | None = None,
    merge_into: PathLike | None = None,
    execute: int | None = None,
    requires: Mapping[str, str] | None = None,
    lineage: Mapping[str, Any] | None = None,
    created: str | None = None,
    accept: Accept = lambda bundle: (),
    progress: Progress | None = None,
) -> ImportReport:
    """Copy a foreign checkpoint folder into the new bundle ``out``; ``out`` appears when it is complete, or not at all.

    Args:
        source: what :func:`vla_checkpoint.importing.source.find_source` takes.
        out: folder to create.
        name: of the model.
        version: Semantic Versioning.
        robot_type: of the robot contract.
        channels: of the action, in order.
        rate_hz: actions per second.
        base: the bundle that an adapter belongs on; needed for adapters only.
        merge_into: that bundle's folder, to make a full bundle of both instead.
        execute: actions of a chunk to execute; ``None``: see :func:`vla_checkpoint.importing.settle.settle`.
        requires: distribution → PEP 440 specifier, what a worker's interpreter needs.
        lineage: any JSON object; the origin that the folder's name shows is added.
        created: UTC ``YYYY-MM-DDTHH:MM:SSZ``; now if ``None``.
        accept: asked before the bundle appears.
        progress: called with the bytes hashed since the last call.

    Raises:
        CheckpointError: the folder is not usable, or the bundle would not be valid; ``out`` is then not there.
    """
    folder, out = find_source(source), Path(out)
    if out.exists():
        raise ImportFolderError("IMPORT_DESTINATION", out, "exists already")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as e:
        raise FileError("FILE_NOT_WRITTEN", out, e.strerror or str(e)) from e
    try:
        left_out = _copy(folder, aside)
        merged = {} if merge_into is None else merge_adapter(aside, verify_bundle(merge_into))
        notes = settle(aside, execute)
        names = list_folder(aside).keys()
        config = load_config(aside)
        is_adapter = ADAPTER_WEIGHTS_NAME in names
        if is_adapter != (base is not None):
            reason = (
                "an adapter needs its base: give --base, and --merge to make one full bundle of both"
                if is_adapter
                else "a base was given, but this is not an adapter"
            )
            raise ImportFolderError("IMPORT_SOURCE", folder, reason)
        if STATS_NAME not in names and not any(processor in names for processor in PROCESSOR_NAMES):
            _write_buffer_stats(aside, names, config, "adapter" if is_adapter else "full")
        manifest = build_manifest(
            aside,
            name=name,
            version=version,
            policy_type=config.type,
            robot_type=robot_type,
            channels=channels,
            rate_hz=rate_hz,
            kind="adapter" if is_adapter else "full",
            base=base,
            requires=requires,
            lineage={**origin_of(folder), **merged, **(lineage or {})},
            created=created,
            progress=progress,
        )
        write_manifest(aside, manifest)
        notes += accept(open_bundle(aside))
        _publish(aside, out)
    except CheckpointError as e:
        raise _as_asked_for(e, aside, folder, out) from e
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return ImportReport(manifest, left_out, notes)


def _copy(folder: Path, out: Path) -> dict[str, str]:
    """Copy what a bundle may hold; return the rest with the reason."""
    left_out: dict[str, str] = {}
    roots = link_roots(folder)
    try:
        for here, folders, files in os.walk(folder, onerror=_raise):
            relative = Path(here).relative_to(folder)
            for hidden in [name for name in folders if name.startswith(".") or (Path(here) / name).is_symlink()]:
                folders.remove(hidden)
                left_out[(relative / hidden).as_posix()] = "a hidden or linked folder"
            for name in sorted(files):
                path = (relative / name).as_posix()
                reason = _not_wanted(name, path)
                if reason is not None:
                    left_out[path] = reason
                    continue
                target = Path(os.path.realpath(Path(here) / name))  # of a loop of links: a link
                if not target.is_file() or not any(target.is_relative_to(root) for root in roots):
                    raise ImportFolderError(
                        "IMPORT_SOURCE",
                        Path(here) / name,
                        "not a file, or a link out of the folder; remove it, or put the file there",
                    )
                (out / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(target, out / path)
    except OSError as e:
        code = "FILE_NOT_WRITTEN" if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "FILE_UNREADABLE"
        raise FileError(code, e.filename or folder, e.strerror or str(e)) from e
    return left_out


def _raise(error: OSError) -> None:
    raise error


def _not_wanted(name: str, path: str) -> str | None:
    if name.startswith("."):
        return "a hidden file"
    if path == MANIFEST_NAME:
        return "a new manifest is made"
    if path == TRAIN_CONFIG_NAME:
        return "holds paths of the training machine; its origin is in the lineage"
    return forbidden_name(name)


def _write_buffer_stats(folder: Path, names: Collection[str], config: PolicyConfig, kind: str) -> None:
    """Write ``stats.json`` from LeRobot <= 0.3's buffers, ``<module>.buffer_<feature with _ for .>.<statistic>``."""
    stats: dict[str, dict[str, Any]] = {}
    homes = {}
    for file in find_weight_files(folder, names, kind):
        homes.update({tensor: (folder / file, info) for tensor, info in read_header(folder / file).tensors.items()})
    for feature in config.normalized_features():
        module = "unnormalize_outputs" if feature == ACTION else "normalize_inputs"
        for name in STAT_NAMES:
            home = homes.get(f"{module}.buffer_{feature.replace('.', '_')}.{name}")
            if home is None or (numpy_dtype(home[1].dtype) is None and home[1].dtype != "BF16"):
                continue
            array = read_array(*home).astype(np.float64)
            if not np.all(np.isfinite(array)):  # LeRobot fills the buffers with infinity until statistics are set
                raise ImportFolderError("IMPORT_SOURCE", home[0], f"statistics of {feature!r} were never set")
            stats.setdefault(feature, {})[name] = array.tolist()
    if stats:
        write_atomically(folder / STATS_NAME, json.dumps(stats, indent=1).encode())


def _as_asked_for(error: CheckpointError, aside: Path, folder: Path, out: Path) -> CheckpointError:
    """Name the file that was read, or was to be made, in place of the temporary one."""
    name = Path(error.path).name
    is_made = name == MANIFEST_NAME or (name == STATS_NAME and not (folder / STATS_NAME).exists())
    return error.moved(aside, out if is_made or error.code == "FILE_NOT_WRITTEN" else folder)


def _publish(aside: Path, out: Path) -> None:
    try:
        aside.chmod(0o755)  # mkdtemp's is private
        aside.rename(out)
    except OSError as e:
        raise ImportFolderError("IMPORT_DESTINATION", out, e.strerror or str(e)) from e
