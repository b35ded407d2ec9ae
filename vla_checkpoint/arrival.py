# SPDX-License-Identifier: Apache-2.0
"""A file that is scanned while it arrives, behind whoever writes it: when its last byte is there, little is left to do.

What is scanned is read from the file, not from the network: it is what :func:`vla_checkpoint.scan.scan_file` would find
afterwards. It stands for the file as long as that is the same one and nobody has written to it since. (Who writes to a file
while this process downloads it, into a folder that is this process's own, is not found out; a worker compares every tensor when
it loads it.)
"""

from __future__ import annotations

import threading
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vla_checkpoint import limits
from vla_checkpoint.errors import CancelledCheckError, HeaderError
from vla_checkpoint.files import Cancel, check_cancel, open_regular
from vla_checkpoint.header import LENGTH_BYTES, Header, read_header
from vla_checkpoint.scan import FileScan, scan_file

_POLL_S = 0.1


@dataclass(frozen=True)
class Arrived:
    """What a file was found to be while it arrived."""

    scan: FileScan
    stamp: tuple[int, ...]
    """See :func:`stamp`, when its last byte was there."""

    def is_still(self, path: Path) -> bool:
        """Whether ``path`` names this very file and nobody has written to it since."""
        with suppress(OSError):
            return stamp(path) == self.stamp
        return False


def stamp(path: Path) -> tuple[int, ...]:
    """Return which file it is, its size [bytes] and when it was written to last [ns]; neither links nor modes change that."""
    entry = path.lstat()
    return entry.st_dev, entry.st_ino, entry.st_size, entry.st_mtime_ns


class Arrival:
    """Scans a file of ``size`` bytes in two threads while it grows. :meth:`close` it in the end, whatever becomes of it."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._there = self._wanted = 0
        self._closed = False
        self._changed = threading.Condition()
        self._found: Future[FileScan] = Future()
        self._thread: threading.Thread | None = None

    def reached(self, end: int) -> None:
        """Say that the file is there, and everything before ``end`` [bytes] in it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="vla_hash_arrival", daemon=True)
            self._thread.start()
        with self._changed:
            self._there = end
            if end >= self._wanted:
                self._changed.notify()

    def finish(self, cancel: Cancel) -> Arrived:
        """Wait for what was found once all has been reached.

        Raises:
            FileError, OSError: it cannot be read.
            CancelledCheckError: ``cancel`` said so; it is asked ten times a second.
        """
        found = stamp(self._path)
        while not futures.wait([self._found], _POLL_S).done:
            check_cancel(cancel, self._path)
        return Arrived(self._found.result(), found)

    def close(self) -> None:
        """Stop, and wait until nothing is read any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    # -- in the thread ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._found.set_result(scan_file(self._path, self._header(), wait=self._wait))
        except BaseException as e:
            self._found.set_exception(e)

    def _wait(self, end: int) -> None:
        with self._changed:
            self._wanted = end
            self._changed.wait_for(lambda: self._closed or self._there >= end)
            if self._closed:
                raise CancelledCheckError("CANCELLED", self._path, "nobody waits for it any more")

    def _header(self) -> Header:
        """Return the header once it has arrived; of another file than safetensors, one that says so."""
        self._wait(min(LENGTH_BYTES, self._size))
        with open_regular(self._path) as file:
            length = int.from_bytes(file.read(LENGTH_BYTES) or b"", "little")
        if length <= min(limits.HEADER_BYTES, self._size - LENGTH_BYTES):
            self._wait(LENGTH_BYTES + length)
            with suppress(HeaderError):
                return read_header(self._path, size=self._size)
        return Header({}, {}, self._size, self._size)
