# SPDX-License-Identifier: Apache-2.0
"""The black box: the last seconds in memory, on disk when something happens, and some seconds after it.

One thread calls :class:`BlackBox`. Causes that come while a file is being written extend it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vla_recorder.errors import RecorderError
from vla_recorder.mcap_file import Item
from vla_recorder.records import Note, Record
from vla_recorder.ring import Ring
from vla_recorder.shelf import Shelf
from vla_recorder.writer import FileWriter

LOG = logging.getLogger("vla_recorder")

METADATA = "vla_ota.black_box"
"""Name of the metadata record that says why a recording was made."""
_CLOSE_S = 10.0


@dataclass(frozen=True)
class Cause:
    """Why a recording is made."""

    name: str  # becomes part of the file's name: lower-case letters, - and _
    text: str  # one line for people


class BlackBox:
    """Records into the ring, and writes it.

    Args:
        shelf: where the files go.
        before_s: what is kept in memory [s].
        after_s: how long a file goes on after its last cause [s].
        max_memory_bytes: bound of the ring, and of what waits to be written [bytes].
        max_file_bytes: a file that reaches this is closed early [bytes].
    """

    def __init__(
        self, shelf: Shelf, *, before_s: float, after_s: float, max_memory_bytes: int, max_file_bytes: int
    ) -> None:
        self._shelf, self._after_ns = shelf, int(after_s * 1e9)
        self._max_memory_bytes, self._max_file_bytes = max_memory_bytes, max_file_bytes
        self.ring = Ring(before_s, max_memory_bytes)
        self._writing: FileWriter | None = None
        self._until_ns = 0
        self._finishing: list[FileWriter] = []
        self.last: Path | None = None
        """The last complete recording."""
        self.error = ""
        """Why the last recording was not written, as ``CODE: text``; empty = it was."""
        self.dropped = 0
        """Messages that the disk was too slow for, since the start."""

    @property
    def writing(self) -> Path | None:
        """The recording that is being written."""
        return self._writing.path if self._writing is not None else None

    def add(self, record: Record, now_ns: int) -> None:
        """Take in a record. ``now_ns``: monotonic."""
        self.ring.add(record, now_ns)
        if self._writing is not None and not self._writing.put(record):
            self.dropped += 1

    def trigger(self, cause: Cause, now_ns: int) -> None:
        """Write down what has led to this, and what follows. What prevents it is noted in ``error`` and logged."""
        try:
            self._begin(cause, now_ns)
        except RecorderError as e:
            self.error = str(e)
            LOG.error("nothing was recorded: %s", e)

    def _begin(self, cause: Cause, now_ns: int) -> FileWriter:
        self.tick(now_ns)
        self._until_ns = now_ns + self._after_ns
        if self._writing is not None:
            self._writing.put(_note(cause))
            return self._writing
        records = self.ring.records()
        path = self._shelf.new_path(cause.name)
        LOG.warning("%s: recording %.1f s into %s", cause.text, self.ring.seconds(now_ns), path)
        waiting, size = self._max_memory_bytes, self._max_file_bytes
        begin: list[Item] = [_note(cause), *records]
        self._writing = FileWriter(self._shelf, path, begin, max_waiting_bytes=waiting, max_file_bytes=size)
        self._writing.start()
        return self._writing

    def tick(self, now_ns: int) -> None:
        """Close the file whose time is over; call it a few times a second."""
        writing = self._writing
        if writing is not None and (now_ns >= self._until_ns or not writing.is_alive()):
            writing.end()
            self._finishing.append(writing)
            self._writing = None
        for ended in [r for r in self._finishing if not r.is_alive()]:
            self._finishing.remove(ended)
            self.error = ended.error
            if not ended.error:
                self.last = ended.path

    def save(self, cause: Cause, now_ns: int) -> Callable[[float], Path]:
        """Write down the last seconds at once; what is being written is closed with them.

        Returns a function that waits at most so long [s] for the complete file, to be called from another thread. Both raise
        RecorderError.
        """
        recording = self._begin(cause, now_ns)
        self._until_ns = now_ns
        return recording.wait

    def close(self) -> None:
        """Finish what is being written."""
        self._until_ns = 0
        self.tick(time.monotonic_ns())
        for recording in self._finishing:
            recording.join(_CLOSE_S)
        self.tick(time.monotonic_ns())


def _note(cause: Cause) -> Note:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Note(METADATA, {"cause": cause.name, "text": cause.text, "at": at})
