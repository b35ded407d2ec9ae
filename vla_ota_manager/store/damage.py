# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a version on disk: every byte is compared with what the manifest says."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vla_checkpoint import MANIFEST_NAME, CancelledCheckError, CheckpointError, Manifest, load_manifest, sha256_file
from vla_checkpoint.files import Cancel, Progress


def find_damage(
    folder: Path, *, digest: str = "", progress: Progress | None = None, cancel: Cancel | None = None
) -> Iterator[str]:
    """Yield what is wrong with a version, in words; nothing if it is whole.

    Args:
        folder: ``models/<name>/<version>``, or a bundle on its way there.
        digest: what the manifest's SHA-256 must be; empty: whatever it is.
        progress, cancel: see :func:`sha256_file`.

    Raises:
        CancelledCheckError: ``cancel`` said so.
    """
    try:
        manifest = load_manifest(folder)
    except CheckpointError as e:
        yield str(e)
        return
    if digest not in ("", manifest.digest):
        yield f"{MANIFEST_NAME}: its SHA-256 is {manifest.digest}, expected {digest}"
        return
    try:
        strays = list(find_strays(folder, manifest))
    except OSError as e:
        yield f"{e.filename or folder}: {e.strerror}"
        return
    for path in strays:
        yield f"{path.relative_to(folder)}: has no place in the bundle"
    for entry in manifest.files:
        problem = file_problem(folder / entry.path, entry.size, entry.sha256, progress=progress, cancel=cancel)
        if problem:
            yield f"{entry.path}: {problem}"


def file_problem(
    path: Path, size: int, sha256: str, *, progress: Progress | None = None, cancel: Cancel | None = None
) -> str:
    """Return why a file is not the one that hashes to ``sha256``; empty if it is."""
    try:
        entry = path.lstat()
        if not stat.S_ISREG(entry.st_mode):
            return "not a regular file"
        if entry.st_size != size:
            return f"{entry.st_size} bytes, the manifest says {size}"
        found = sha256_file(path, progress=progress, cancel=cancel)
    except CancelledCheckError:
        raise
    except OSError as e:
        return e.strerror or str(e)
    except CheckpointError as e:  # also what the disk cannot read any more
        return e.reason
    return "" if found == sha256 else f"SHA-256 is {found}, the manifest says {sha256}"


def find_strays(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Yield what has no place in a version's folder: what the manifest does not list, and what is no file or folder."""
    files = {MANIFEST_NAME, *(entry.path for entry in manifest.files)}
    folders = {parent.as_posix() for path in files for parent in Path(path).parents}

    def search(inside: str) -> Iterator[Path]:
        with os.scandir(folder / inside) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{inside}{entry.name}"
                if name in folders and entry.is_dir(follow_symlinks=False):
                    yield from search(f"{name}/")
                elif name not in files or not entry.is_file(follow_symlinks=False):
                    yield folder / name

    return search("")
