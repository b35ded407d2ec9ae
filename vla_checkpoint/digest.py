# SPDX-License-Identifier: Apache-2.0
"""SHA-256 in constant memory."""

from __future__ import annotations

import hashlib
import re

from vla_checkpoint.files import BUFFER_BYTES, Cancel, PathLike, Progress, check_cancel, open_regular

SHA256 = re.compile(r"[0-9a-f]{64}")


def is_sha256(value: object) -> bool:
    """Return whether a JSON value is a SHA-256 as 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


def sha256_bytes(data: bytes | bytearray | memoryview) -> str:
    """Return the SHA-256 of ``data`` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: PathLike, *, progress: Progress | None = None, cancel: Cancel | None = None) -> str:
    """Return the SHA-256 of a file as 64 lower-case hexadecimal digits, whatever its size, with one reused buffer.

    Args:
        path: a regular file (symlinks are followed).
        progress: called with the bytes hashed since the last call.
        cancel: asked after each buffer; true stops.

    Raises:
        FileError: it cannot be read.
        CancelledCheckError: ``cancel`` said so.
    """
    digest = hashlib.sha256()
    view = memoryview(bytearray(BUFFER_BYTES))
    with open_regular(path) as file:
        while count := file.readinto(view):
            digest.update(view[:count])
            if progress is not None:
                progress(count)
            check_cancel(cancel, path)
    return digest.hexdigest()
