# SPDX-License-Identifier: Apache-2.0
"""Which file names a bundle may have: they come from the network, and become URLs and paths on a robot's disk.

ASCII only: such a name means the same file to every file system, server and browser, whatever its Unicode normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence

from vla_checkpoint import limits
from vla_checkpoint.errors import ManifestError
from vla_checkpoint.files import PathLike

MANIFEST_NAME = "manifest.json"


def fold_path(path: str) -> str:
    """Return what a file system that ignores case would take the plain path ``path`` for."""
    return path.lower()


def path_fault(path: str) -> str | None:
    """Return why ``path`` is no plain relative POSIX path below a bundle, or ``None`` if it is one."""
    if len(path) > limits.PATH_CHARS:
        return f"longer than {limits.PATH_CHARS} characters"
    if not path.isascii() or not path.isprintable() or "\\" in path or "%" in path:
        return "holds a character that is not printable ASCII, or a backslash or %"  # a server might find another file, or none
    segments = path.split("/")
    if len(segments) > limits.PATH_DEPTH:
        return f"more than {limits.PATH_DEPTH} segments"
    if any(segment in ("", ".", "..") for segment in segments):
        return "is absolute, empty, or has an empty, '.' or '..' segment"
    if any(segment != segment.strip() for segment in segments):
        return "has a segment that begins or ends with a space"
    if fold_path(segments[0]) == MANIFEST_NAME:
        return f"{MANIFEST_NAME} does not list itself"
    return None


def check_paths(paths: Sequence[str], manifest: PathLike) -> None:
    """Check every path, and that no two would meet in one place on any file system.

    Raises:
        ManifestError: ``MANIFEST_PATH``.
    """
    folded: dict[str, str] = {}
    for path in paths:
        fault = path_fault(path)
        if fault is not None:
            raise ManifestError("MANIFEST_PATH", manifest, f"{path[:80]!r} {fault}")
        key = fold_path(path)
        if key in folded:
            reason = f"{path!r} and {folded[key]!r} are the same file to some systems"
            raise ManifestError("MANIFEST_PATH", manifest, reason)
        folded[key] = path
    for key, path in folded.items():
        parts = key.split("/")
        for i in range(1, len(parts)):
            parent = folded.get("/".join(parts[:i]))
            if parent is not None:
                raise ManifestError("MANIFEST_PATH", manifest, f"{parent!r} is a file and the folder of {path!r}")
