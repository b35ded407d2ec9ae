# SPDX-License-Identifier: Apache-2.0
"""``golden.safetensors`` made with the policy itself, and replayed in a fresh worker before it becomes part of the bundle."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_checkpoint import limits
from vla_checkpoint.bundle import Bundle, open_bundle, verify_bundle
from vla_checkpoint.config import Feature
from vla_checkpoint.digest import sha256_file
from vla_checkpoint.errors import CheckpointError, FileError, GoldenError
from vla_checkpoint.golden import GOLDEN_NAME, Golden, check_golden, write_golden
from vla_checkpoint.manifest import FileEntry, write_manifest
from vla_checkpoint.paths import MANIFEST_NAME
from vla_checkpoint.stats import Stats
from vla_policy_node.desk.fit import spec_of
from vla_policy_node.desk.run import prepared
from vla_policy_node.worker.api import WorkerConfig
from vla_policy_node.worker.plan import Recording

Observations = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Proof:
    """What a golden file was made of, and how well a second worker repeated it."""

    digest: str
    """The bundle's new one."""
    count: int
    difference: float
    """Largest absolute difference of the replay, of whatever channel, in its unit."""


def make_golden(
    folder: Path,
    config: WorkerConfig,
    observations: Observations,
    instructions: Sequence[str],
    *,
    tolerance: float,
    seed: int,
) -> Proof:
    """Ask a bundle's policy, write its answers as golden observations, and replay them in another worker.

    The bundle changes only when all of that succeeded; it then has a new digest.

    Args:
        folder: the bundle.
        config: how workers are started.
        observations: feature → ``[N, …]``, physical units.
        instructions: N texts.
        tolerance: largest allowed absolute difference, in each channel's unit.
        seed: of random numbers, set before each observation.

    Raises:
        CheckpointError: ``BUNDLE_PUBLISHED``, or what is wrong with bundle, observations, policy or replay.
    """
    bundle = verify_bundle(folder)
    _check_writable(bundle.path)
    shape = (len(instructions), bundle.config.chunk_size, bundle.config.action_dim)
    allowed = np.full(shape[-1], tolerance, np.float32)
    asked = Golden(_typed(observations), np.zeros(shape, np.float32), tuple(instructions), allowed, seed)
    check_golden(asked, bundle.config, "observations")
    features = spec_of(bundle).observation
    recording = Recording(asked)
    try:
        with prepared(config, bundle.path, features, recording):
            golden = replace(asked, action=recording.action())
    finally:
        recording.close()
    aside = Path(tempfile.mkdtemp(prefix=f".{bundle.path.name}.", dir=bundle.path.parent))
    try:
        digest = _write(bundle, aside, golden)
        with _repeated(), prepared(config, aside, features) as generation:
            difference = generation.timings.golden_difference
        for name in (GOLDEN_NAME, MANIFEST_NAME):
            (aside / name).replace(bundle.path / name)
    except CheckpointError as e:
        raise e.moved(aside, bundle.path) from e
    except OSError as e:
        raise FileError("FILE_NOT_WRITTEN", bundle.path, e.strerror or str(e)) from e
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Proof(digest, len(golden), difference)


@contextmanager
def _repeated() -> Iterator[None]:
    """Say what a policy needs that answers otherwise the second time."""
    try:
        yield
    except CheckpointError as e:
        if e.code != "GOLDEN_MISMATCH":
            raise
        reason = (
            f"the policy does not repeat itself; if it draws random numbers it needs a method seed(seed): {e.reason}"
        )
        raise CheckpointError(e.code, e.path, reason) from e


def random_observations(bundle: Bundle, count: int, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Return observations as the statistics allow: uniform within them; pictures, and what has none, are noise."""
    rng = np.random.default_rng(seed)
    return {
        key: _random(rng, feature, bundle.stats, key, count) for key, feature in bundle.config.input_features.items()
    }


def read_observations(path: Path, frames: int) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
    """Return the first ``frames`` observations of a numpy archive: an array ``[N, …]`` a feature, and ``instruction`` ``[N]``.

    Raises:
        CheckpointError: ``FILE_MISSING``, ``FILE_UNREADABLE`` or ``GOLDEN_FORMAT``.
    """
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as loaded:
            size = sum(member.file_size for member in archive.infolist())
            if size > limits.GOLDEN_BYTES:
                raise GoldenError("GOLDEN_FORMAT", path, f"{size} bytes, at most {limits.GOLDEN_BYTES} are read")
            arrays = {name: np.atleast_1d(loaded[name])[:frames] for name in loaded.files}
    except FileNotFoundError as e:
        raise FileError("FILE_MISSING", path, "no such file") from e
    except OSError as e:
        raise FileError("FILE_UNREADABLE", path, e.strerror or str(e)) from e
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as e:
        reason = f"no archive of plain arrays; write it with numpy.savez: {e}"
        raise GoldenError("GOLDEN_FORMAT", path, reason) from e
    instructions = [str(text) for text in arrays.pop("instruction", [])]
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1 or 0 in counts or len(instructions) not in (0, *counts):
        raise GoldenError("GOLDEN_FORMAT", path, "every array needs the same number of entries, above 0")
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            raise GoldenError("GOLDEN_FORMAT", path, f"{name!r} is {array.dtype}: finite numbers are needed")
    return arrays, instructions


def _typed(observations: Observations) -> dict[str, npt.NDArray[Any]]:
    """Numbers as the robot gives them, float32; pictures stay bytes."""
    return {key: a if a.dtype == np.uint8 else a.astype(np.float32) for key, a in observations.items()}


def _random(rng: np.random.Generator, feature: Feature, stats: Stats, key: str, count: int) -> npt.NDArray[Any]:
    shape = (count, *feature.array_shape)
    if feature.type == "VISUAL":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    entry = stats.get(key, {})
    for low, high in (("q01", "q99"), ("min", "max")):
        if low in entry and high in entry:
            return rng.uniform(entry[low], entry[high], (count, feature.stats_size)).astype(np.float32).reshape(shape)
    mean, std = entry.get("mean", np.zeros(1)), entry.get("std", np.ones(1))
    drawn = np.clip(rng.standard_normal((count, feature.stats_size)), -2.0, 2.0) * std + mean
    return drawn.astype(np.float32).reshape(shape)


def _check_writable(folder: Path) -> None:
    for path in (folder, folder / MANIFEST_NAME):
        if not path.stat().st_mode & 0o222 or not os.access(path, os.W_OK):
            reason = "read-only: a published bundle never changes; copy it and give the copy a new version"
            raise CheckpointError("BUNDLE_PUBLISHED", path, reason)


def _write(bundle: Bundle, aside: Path, golden: Golden) -> str:
    """Make the new bundle in ``aside``, of links to the old one's files; return its digest."""
    manifest = bundle.manifest
    for entry in manifest.files:
        if entry.path != GOLDEN_NAME:
            (aside / entry.path).parent.mkdir(parents=True, exist_ok=True)
            _link(bundle.path / entry.path, aside / entry.path)
    write_golden(
        aside / GOLDEN_NAME, golden.observations, golden.action, golden.instructions, golden.tolerance, golden.seed
    )
    added = FileEntry(GOLDEN_NAME, (aside / GOLDEN_NAME).stat().st_size, sha256_file(aside / GOLDEN_NAME))
    kept = [entry for entry in manifest.files if entry.path != GOLDEN_NAME]
    made = replace(manifest, files=tuple(sorted([*kept, added], key=lambda entry: entry.path)))
    write_manifest(aside, made)
    return open_bundle(aside).digest


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
