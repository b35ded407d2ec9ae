# SPDX-License-Identifier: Apache-2.0
"""Making a manifest for a folder: what publishing and importing do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import rfc8785

from vla_checkpoint.bundle import inspect_folder
from vla_checkpoint.digest import sha256_file
from vla_checkpoint.errors import ManifestError
from vla_checkpoint.files import Cancel, PathLike, Progress
from vla_checkpoint.folder import list_folder, resolve_folder
from vla_checkpoint.manifest import ActionSpec, BaseRef, Channel, FileEntry, Kind, Manifest
from vla_checkpoint.paths import MANIFEST_NAME, check_paths
from vla_checkpoint.scan import check_values, scan_file


def build_manifest(
    bundle_dir: PathLike,
    *,
    name: str,
    version: str,
    policy_type: str,
    robot_type: str,
    channels: Sequence[Channel],
    rate_hz: float,
    kind: Kind = "full",
    base: BaseRef | None = None,
    lineage: Mapping[str, Any] | None = None,
    requires: Mapping[str, str] | None = None,
    created: str | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Manifest:
    """Check a folder, hash it and return its manifest (:func:`vla_checkpoint.write_manifest` stores it).

    The folder has to be what :func:`vla_checkpoint.verify_bundle` accepts, except for the manifest; an old one is ignored.

    Args:
        bundle_dir: the folder.
        name: of the model.
        version: Semantic Versioning.
        policy_type: must be ``type`` in ``config.json``.
        robot_type: of the robot contract.
        channels: of the action, in order.
        rate_hz: actions per second.
        kind: ``full`` or ``adapter``.
        base: the bundle an adapter belongs on.
        lineage: any JSON object.
        requires: distribution → versions of the interpreter that runs the policy, as ``>=0.4,<0.5``.
        created: UTC ``YYYY-MM-DDTHH:MM:SSZ``; now if ``None``.
        progress: called with the bytes done since the last call.
        cancel: true stops.

    Raises:
        CheckpointError: the folder or an argument would not be accepted.
    """
    folder = resolve_folder(bundle_dir)
    files = list_folder(folder)
    draft = Manifest(
        name=name,
        version=version,
        policy_type=policy_type,
        robot_type=robot_type,
        action=ActionSpec(tuple(channels), float(rate_hz)),
        created=created or datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        files=(),
        tensors={},
        kind=kind,
        base=base,
        lineage=lineage or {},
        requires=requires or {},
    )
    _reparse(draft, folder)  # refuse bad arguments and names before hashing gigabytes
    check_paths(sorted(files), folder / MANIFEST_NAME)
    bundle = inspect_folder(folder, draft, files, cancel)
    entries: list[FileEntry] = []
    tensors: dict[str, Mapping[str, str]] = {}
    for path in sorted(files):
        header = bundle.headers.get(path)
        if header is None:
            digest = sha256_file(folder / path, progress=progress, cancel=cancel)
        else:
            scan = scan_file(folder / path, header, progress=progress, cancel=cancel)
            check_values(folder / path, scan)
            digest = scan.sha256
            if path in bundle.weight_files:
                tensors[path] = scan.tensors
        entries.append(FileEntry(path, files[path].size, digest))
    bundle.golden()
    return _reparse(replace(draft, files=tuple(entries), tensors=tensors), folder)


def _reparse(manifest: Manifest, folder: Path) -> Manifest:
    try:
        data = manifest.canonical()
    except rfc8785.CanonicalizationError as e:
        raise ManifestError("MANIFEST_NOT_CANONICAL", folder / MANIFEST_NAME, str(e)) from e
    return Manifest.parse(data, path=folder / MANIFEST_NAME)
