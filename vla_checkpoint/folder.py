# SPDX-License-Identifier: Apache-2.0
"""What lies in a bundle's folder: plain files and the folders they need, and nothing that could be code or a pickle."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vla_checkpoint import limits
from vla_checkpoint.errors import BundleError, FileError
from vla_checkpoint.files import PathLike, open_regular
from vla_checkpoint.paths import MANIFEST_NAME

# Formats that are pickles or may hold one, and code: loading either runs what somebody else wrote.
FORBIDDEN_SUFFIXES = frozenset({
    ".pt", ".pt2", ".pth", ".ptl", ".torchscript", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".h5",
    ".keras", ".msgpack",
    ".py", ".pyc", ".pyo", ".so", ".dll", ".dylib", ".sh", ".exe",
})  # fmt: skip

_MAGIC = (
    (b"PK\x03\x04", "a zip archive (PyTorch's container for pickles)"),
    (b"\x93NUMPY", "a numpy file (may hold pickled objects)"),
    (b"\x7fELF", "an executable"),
    (b"\x1f\x8b", "a gzip archive (joblib's container for pickles)"),
)
_PICKLE_PROTOCOLS = (2, 3, 4, 5)  # protocols 0 and 1 have no magic number


@dataclass(frozen=True)
class FolderFile:
    """A regular file below a bundle."""

    path: str
    """Relative, with ``/``."""
    size: int
    """[bytes]"""


def resolve_folder(path: PathLike) -> Path:
    """Return the folder that ``path`` names, links resolved.

    Raises:
        BundleError: ``BUNDLE_NOT_A_FOLDER``.
    """
    try:
        folder = Path(path).resolve()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError, ValueError) as e:  # no access; a loop of links; a NUL in the name
        raise BundleError("BUNDLE_NOT_A_FOLDER", path, f"cannot be opened: {e}") from e
    raise BundleError("BUNDLE_NOT_A_FOLDER", path, "no such folder")


def list_folder(folder: Path) -> dict[str, FolderFile]:
    """Return relative path → file for every file below ``folder`` except the manifest.

    Raises:
        BundleError: it holds a symlink, a special file, an empty folder or too many files.
        FileError: it cannot be listed.
    """
    result: dict[str, FolderFile] = {}
    try:
        _list_into(folder, "", 1, result)
    except OSError as e:
        raise FileError("FILE_UNREADABLE", e.filename or folder, e.strerror or str(e)) from e
    result.pop(MANIFEST_NAME, None)
    return result


def _list_into(root: Path, prefix: str, depth: int, result: dict[str, FolderFile]) -> None:
    here = root / prefix
    if depth > limits.PATH_DEPTH:
        raise BundleError("BUNDLE_FILE_EXTRA", here, f"nested deeper than {limits.PATH_DEPTH}")
    empty = True
    with os.scandir(here) as entries:
        for entry in entries:
            empty = False
            name = prefix + entry.name
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                raise BundleError("BUNDLE_SYMLINK", root / name, "a bundle holds no symbolic links")
            if stat.S_ISDIR(status.st_mode):
                _list_into(root, name + "/", depth + 1, result)
            elif stat.S_ISREG(status.st_mode):
                result[name] = FolderFile(name, status.st_size)
            else:
                raise BundleError("BUNDLE_FILE_EXTRA", root / name, "neither file nor folder")
            if len(result) > limits.FILES + 1:
                raise BundleError("BUNDLE_FILE_EXTRA", root, f"more than {limits.FILES} files")
    if empty and prefix:
        raise BundleError("BUNDLE_FILE_EXTRA", here, "an empty folder")


def forbidden_name(name: str) -> str | None:
    """Return why a file of this name has no place in a bundle, or ``None``."""
    suffix = Path(name).suffix.lower()
    return f"{suffix} files are pickles or code, which a bundle never holds" if suffix in FORBIDDEN_SUFFIXES else None


def check_not_forbidden(path: Path) -> None:
    """Refuse pickles, archives that may hold them, and code: by name, and by the first bytes.

    Raises:
        BundleError: ``BUNDLE_FORBIDDEN_FILE``.
        FileError: it cannot be read.
    """
    reason = forbidden_name(path.name)
    if (
        reason is None and path.suffix != ".safetensors"
    ):  # their first bytes are a length: the header's parser judges those
        with open_regular(path) as file:
            start = file.read(8) or b""
        reason = next((f"is {what}" for magic, what in _MAGIC if start.startswith(magic)), None)
        if start[:1] == b"\x80" and start[1:2] and start[1] in _PICKLE_PROTOCOLS:
            reason = "is a pickle"
    if reason is not None:
        raise BundleError("BUNDLE_FORBIDDEN_FILE", path, reason)
