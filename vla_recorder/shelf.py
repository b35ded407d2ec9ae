# SPDX-License-Identifier: Apache-2.0
"""The folder of the recordings, bounded: the oldest ones go to make room, and some space of the disk stays free."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from vla_recorder.errors import RecorderError, io_error
from vla_recorder.mcap_file import PART, Item, recover

LOG = logging.getLogger("vla_recorder")

Rank = tuple[int, ...]


class Shelf:
    """Recordings of one robot; the oldest go first. Thread-safe. Files of other names are left alone, and are not counted.

    Args:
        folder: made if missing.
        max_bytes: most that the recordings take together [bytes].
        min_free_bytes: space of the file system that stays free [bytes].

    Raises RecorderError RECORDING_IO if there can be no such folder.
    """

    names = re.compile(r"\d{8}T\d{6}Z_[a-z_-]+(\.\d+)?\.mcap")

    def __init__(self, folder: Path, max_bytes: int, min_free_bytes: int) -> None:
        self.folder, self._max_bytes, self._min_free_bytes = folder, max_bytes, min_free_bytes
        self._lock = threading.Lock()
        self._given: tuple[str, set[Path]] = ("", set())  # names given in this second: their files may not be there yet
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise io_error(e, folder) from e

    def recover(self) -> None:
        """Complete what a killed recorder left behind; what cannot be completed is removed and logged."""
        for part in sorted(self.folder.glob(f"*.mcap{PART}")):
            if not self.names.fullmatch(part.name.removesuffix(PART)):
                continue
            try:
                whole = recover(part, self._mend)
                LOG.warning("%s was not finished: %s", part.name, "recovered" if whole else "it held nothing")
            except RecorderError as e:
                LOG.error("%s was not finished, and is removed: %s", part.name, e)
                part.unlink(missing_ok=True)

    def _mend(self, items: Iterator[Item]) -> Iterator[Item]:
        return items

    def new_path(self, what: str) -> Path:
        """Return a free name for a recording that begins now, with ``what`` in it as ``names`` has it. Raises RecorderError."""
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        given = self._given[1] if self._given[0] == now else set()
        stem = f"{now}_{what}"
        names = (stem, *(f"{stem}.{i}" for i in range(1, 1000)))
        paths = (self.folder / f"{name}.mcap" for name in names)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # somebody may have removed it
            taken = {*given, *self.folder.iterdir()}
        except OSError as e:
            raise io_error(e, self.folder) from e
        path = next(p for p in paths if p not in taken and p.with_name(p.name + PART) not in taken)
        self._given = now, {*given, path}
        return path

    def recordings(self) -> list[Path]:
        """Return the complete recordings, in the order in which they go."""
        return [path for _, path, _ in self._sized()]

    def _sized(self) -> list[tuple[Rank, Path, int]]:
        """Return rank, path and size, what goes first at first."""
        found = []
        for path in self.folder.glob("*.mcap"):
            with contextlib.suppress(FileNotFoundError):  # a person may remove one at any moment
                status = path.stat()
                if self.names.fullmatch(path.name):
                    found.append(((status.st_mtime_ns,), path, status.st_size))
        return sorted(found)

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    @property
    def bytes(self) -> int:
        """What the complete recordings take together [bytes]."""
        return sum(size for *_, size in self._sized())

    @property
    def free_bytes(self) -> int:
        """Space that is free beyond what must stay free; negative: none is [bytes]."""
        return shutil.disk_usage(self.folder).free - self._min_free_bytes

    def make_room(self, needed: int, written: int = 0) -> None:
        """Remove the oldest recordings until ``needed`` more bytes fit beside the ``written`` ones of a recording in the making.

        Raises RecorderError DISK_FULL: they do not fit, though no other recording is left.
        """
        with self._lock:
            try:
                recordings = self._sized()
                total = sum(size for *_, size in recordings)
                while total + written + needed > self._max_bytes or self.free_bytes < needed:
                    if not recordings:
                        raise RecorderError("DISK_FULL", f"{self.folder}: {self._why_not(needed, written)}")
                    _, oldest, size = recordings.pop(0)
                    if total + written + needed <= self._max_bytes and _shared(oldest):
                        continue
                    total -= size
                    self._remove(oldest)
                    LOG.info("%s is removed to make room", oldest.name)
            except OSError as e:
                raise io_error(e, self.folder) from e

    def _why_not(self, needed: int, written: int) -> str:
        if self.free_bytes < needed:
            free = self.free_bytes + self._min_free_bytes
            return f"{free} bytes are free, {self._min_free_bytes} must stay, and {needed} are needed"
        return f"a recording of {written + needed} bytes is more than max_disk_bytes, {self._max_bytes}"


def _shared(path: Path) -> bool:
    """Whether it has another name too, as while the robot learns from it: to remove it would free nothing."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_nlink > 1
    return False
