# SPDX-License-Identifier: Apache-2.0
"""Reading from disk: the boundary where ``OSError`` becomes :class:`FileError`."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from vla_checkpoint.errors import CancelledCheckError, FileError

Progress = Callable[[int], None]
"""Called with the number of bytes done since the last call."""
Cancel = Callable[[], bool]
"""Asked between buffers; true ends the work with :class:`CancelledCheckError`."""

BUFFER_BYTES = 4 << 20  # holds any element size; larger buffers leave the L2 cache and hash no faster

PathLike = str | os.PathLike[str]


@contextmanager
def open_regular(path: PathLike) -> Iterator[FileIO]:
    """Open a regular file for unbuffered reading; ``with`` closes it.

    Raises:
        FileError: it is missing, unreadable, or no regular file; also for an ``OSError`` inside the ``with`` block.
    """
    try:
        # O_NONBLOCK: opening a FIFO that somebody planted must not block for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileError("FILE_NOT_REGULAR", path, "not a regular file")
        with FileIO(descriptor, "r", closefd=True) as file:
            yield file
    except FileNotFoundError as e:
        raise FileError("FILE_MISSING", path, "no such file") from e
    except OSError as e:
        raise FileError("FILE_UNREADABLE", path, e.strerror or str(e)) from e


def file_size(file: FileIO) -> int:
    """Return the size of an open file [bytes]."""
    return os.fstat(file.fileno()).st_size


def read_exactly(file: FileIO, path: PathLike, view: memoryview) -> None:
    """Fill ``view`` from the file's current position.

    Raises:
        FileError: the file ends before that.
    """
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise FileError("FILE_UNREADABLE", path, "ended while it was being read")
        done += count


def read_bytes(path: PathLike, limit: int) -> bytes:
    """Read a small file whole.

    Raises:
        FileError: see :func:`open_regular`, or it is larger than ``limit`` bytes.
    """
    with open_regular(path) as file:
        size = file_size(file)
        if size > limit:
            raise FileError("FILE_TOO_LARGE", path, f"{size} bytes, at most {limit} are read")
        data = bytearray(size)
        read_exactly(file, path, memoryview(data))
        return bytes(data)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: written aside, flushed to disk, renamed.

    Raises:
        FileError: it could not be written; the old file, if any, is untouched.
    """
    aside = path.with_name(path.name + ".partial")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as e:
        aside.unlink(missing_ok=True)
        raise FileError("FILE_NOT_WRITTEN", path, e.strerror or str(e)) from e


def check_cancel(cancel: Cancel | None, path: PathLike) -> None:
    """Raise :class:`CancelledCheckError` if the caller wants to stop."""
    if cancel is not None and cancel():
        raise CancelledCheckError("CANCELLED", path, "cancelled by the caller")
