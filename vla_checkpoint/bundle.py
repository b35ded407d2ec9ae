# SPDX-License-Identifier: Apache-2.0
"""A bundle on disk: :func:`open_bundle` looks at everything but the weights' bytes, :func:`verify_bundle` at those too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from vla_checkpoint import limits
from vla_checkpoint.adapter import check_adapter_config
from vla_checkpoint.arrival import Arrived
from vla_checkpoint.config import CONFIG_NAME, PolicyConfig, load_config
from vla_checkpoint.digest import sha256_bytes, sha256_file
from vla_checkpoint.errors import BundleError, ConfigError, DigestError
from vla_checkpoint.files import Cancel, PathLike, Progress, check_cancel, read_bytes
from vla_checkpoint.folder import FolderFile, check_not_forbidden, list_folder, resolve_folder
from vla_checkpoint.golden import GOLDEN_NAME, Golden, check_golden, read_golden
from vla_checkpoint.header import Header, read_header
from vla_checkpoint.manifest import Manifest
from vla_checkpoint.paths import MANIFEST_NAME
from vla_checkpoint.scan import FileScan, check_values, scan_file
from vla_checkpoint.shards import INDEX_NAME, check_shards, find_weight_files, read_index
from vla_checkpoint.stats import Stats, load_stats

_SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose parts were parsed and agree with each other."""

    path: Path
    """The folder, symlinks resolved when it was opened: a link that moves later does not mix two bundles."""
    manifest: Manifest
    config: PolicyConfig
    stats: Stats
    headers: Mapping[str, Header]
    """Relative path → header, for every safetensors file."""
    weight_files: tuple[str, ...]
    """Relative paths of the files that hold the weights."""
    has_golden: bool

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest: the bundle's name."""
        return self.manifest.digest

    def golden(self) -> Golden | None:
        """Read the golden observations, if there are any.

        Raises:
            CheckpointError: the file is malformed or does not fit the policy.
        """
        if not self.has_golden:
            return None
        path = self.path / GOLDEN_NAME
        golden = read_golden(path)
        check_golden(golden, self.config, path)
        return golden


def open_bundle(
    path: PathLike,
    *,
    expected_digest: str | None = None,
    cancel: Cancel | None = None,
) -> Bundle:
    """Parse a bundle and check that its parts agree: cheap, reads no tensor data and hashes the manifest only.

    Args:
        path: the folder, or a link to it.
        expected_digest: what the manifest's SHA-256 must be.
        cancel: asked before each file; true stops.

    Raises:
        CheckpointError: whatever is wrong first (see :mod:`vla_checkpoint.errors`); :class:`CancelledCheckError` when cancelled.
    """
    folder = resolve_folder(path)
    files = list_folder(folder)
    manifest_path = folder / MANIFEST_NAME
    data = read_bytes(manifest_path, limits.MANIFEST_BYTES)
    if expected_digest is not None and sha256_bytes(data) != expected_digest:
        raise DigestError(
            "DIGEST_BUNDLE", manifest_path, f"SHA-256 is {sha256_bytes(data)}, expected {expected_digest}"
        )
    manifest = Manifest.parse(data, path=manifest_path)
    _check_files(folder, manifest, files)
    bundle = inspect_folder(folder, manifest, files, cancel)
    _check_tensor_lists(bundle)
    return bundle


def verify_bundle(
    path: PathLike,
    *,
    expected_digest: str | None = None,
    scan_values: bool = True,
    arrived: Mapping[str, Arrived] = MappingProxyType({}),
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Bundle:
    """Check everything that can be checked without running the policy; each file is read once at most, in constant memory.

    Args:
        path: the folder, or a link to it.
        expected_digest: what the manifest's SHA-256 must be.
        scan_values: also look for NaN and infinity in the tensors.
        arrived: SHA-256 → what the caller found of that file while it arrived; it is not read again if it is the same still.
        progress: called with the bytes done since the last call; they add up to ``manifest.total_bytes``.
        cancel: asked before each file, and a few hundred times a gigabyte; true stops.

    Raises:
        CheckpointError: whatever is wrong first; :class:`CancelledCheckError` when cancelled.
    """
    bundle = open_bundle(path, expected_digest=expected_digest, cancel=cancel)
    for entry in bundle.manifest.files:
        file, known = bundle.path / entry.path, arrived.get(entry.sha256)
        header = bundle.headers.get(entry.path)
        if known is not None and known.is_still(file):
            scan = known.scan
            if progress is not None:
                progress(entry.size)
        elif header is None:
            scan = FileScan(sha256_file(file, progress=progress, cancel=cancel), {}, {})
        else:
            scan = scan_file(file, header, values=scan_values, progress=progress, cancel=cancel)
        if scan.sha256 != entry.sha256:  # first: a broken transfer must not be reported as bad weights
            raise DigestError("DIGEST_FILE", file, f"SHA-256 is {scan.sha256}, the manifest says {entry.sha256}")
        for tensor, digest in bundle.manifest.tensors.get(entry.path, {}).items():
            if scan.tensors.get(tensor) != digest:
                raise DigestError("DIGEST_TENSOR", file, f"{tensor!r}: SHA-256 is not the manifest's")
        if scan_values and header is not None:
            check_values(file, scan)
    bundle.golden()
    return bundle


def inspect_folder(
    folder: Path,
    manifest: Manifest,
    files: Mapping[str, FolderFile],
    cancel: Cancel | None = None,
) -> Bundle:
    """Parse configuration, statistics and headers of a folder and check them against each other and the manifest's action space.

    Raises:
        CheckpointError: whatever is wrong first.
    """
    headers: dict[str, Header] = {}
    for name in sorted(files):
        check_cancel(cancel, folder / name)
        check_not_forbidden(folder / name)
        if name.endswith(_SAFETENSORS):
            headers[name] = read_header(folder / name)
    weight_files = find_weight_files(folder, files.keys(), manifest.kind)
    if INDEX_NAME in files:
        shards = {n: header for n, header in headers.items() if n.startswith("model") and "/" not in n}
        index_path = folder / INDEX_NAME
        check_shards(index_path, read_index(index_path), {**shards, **{n: headers[n] for n in weight_files}})
    if not any(headers[name].tensors for name in weight_files):
        raise BundleError("BUNDLE_WEIGHTS", folder, "the weight files hold no tensor")
    config = load_config(folder)
    _check_config(folder / CONFIG_NAME, config, manifest)
    if manifest.kind == "adapter":
        check_adapter_config(folder)
    return Bundle(
        path=folder,
        manifest=manifest,
        config=config,
        stats=load_stats(folder, files.keys(), config, [c.name for c in manifest.action.channels]),
        headers=MappingProxyType(headers),
        weight_files=weight_files,
        has_golden=GOLDEN_NAME in files,
    )


def _check_config(path: Path, config: PolicyConfig, manifest: Manifest) -> None:
    if config.type != manifest.policy_type:
        reason = f"type is {config.type!r}, the manifest's policy_type {manifest.policy_type!r}"
        raise ConfigError("CONFIG_MISMATCH", path, reason)
    channels = len(manifest.action.channels)
    if config.action_dim != channels:
        reason = f"actions have {config.action_dim} numbers, the manifest {channels} channels"
        raise ConfigError("CONFIG_MISMATCH", path, reason)


def _check_files(folder: Path, manifest: Manifest, files: Mapping[str, FolderFile]) -> None:
    """Every listed file is there with its size, and no other."""
    listed = {entry.path: entry for entry in manifest.files}
    for path, entry in listed.items():
        found = files.get(path)
        if found is None:
            raise BundleError("BUNDLE_FILE_MISSING", folder / path, "listed in the manifest but not there")
        if found.size != entry.size:
            raise BundleError("BUNDLE_FILE_SIZE", folder / path, f"{found.size} bytes, the manifest says {entry.size}")
    for path in files:
        if path not in listed:
            raise BundleError("BUNDLE_FILE_EXTRA", folder / path, "not listed in the manifest")


def _check_tensor_lists(bundle: Bundle) -> None:
    """The manifest has a digest for every tensor of every weight file, and for no other tensor."""
    for name in bundle.weight_files:
        if name not in bundle.manifest.tensors:
            raise BundleError("BUNDLE_TENSORS", bundle.path / name, "the manifest has no tensor digests for it")
    for name, tensors in bundle.manifest.tensors.items():
        wrong = sorted(tensors.keys() ^ bundle.headers[name].tensors.keys())
        if wrong:
            where = "the manifest" if wrong[0] in tensors else "the file"
            raise BundleError("BUNDLE_TENSORS", bundle.path / name, f"tensor {wrong[0]!r} is only in {where}")
