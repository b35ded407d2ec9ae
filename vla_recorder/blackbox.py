# SPDX-License-Identifier: Apache-2.0
"""The black box: the last seconds in memory, on disk when something happens, and some seconds after it.

One thread calls :class:`BlackBox`; a thread of its own writes each file, so that a slow disk costs no message. Causes that come
while a file is being written extend it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_recorder.errors import RecorderError
from vla_recorder.mcap_file import McapFile
from vla_recorder.records import Record
from vla_recorder.ring import Ring
from vla_recorder.shelf import Shelf

LOG = logging.getLogger("vla_recorder")

METADATA = "vla_ota.black_box"
"""Name of the metadata record that says why a recording was made."""
_LOOK_S = 1.0  # how often what is written is handed to the kernel, and the disk looked at
_CLOSE_S = 10.0
_NEXT_BYTES = 1 << 20
"""Room for the index of a recording and for what comes until the next look [bytes]."""


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
        self._writing: _Recording | None = None
        self._until_ns = 0
        self._finishing: list[_Recording] = []
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

    def _begin(self, cause: Cause, now_ns: int) -> _Recording:
        self.tick(now_ns)
        self._until_ns = now_ns + self._after_ns
        if self._writing is not None:
            self._writing.put(cause)
            return self._writing
        records = self.ring.records()
        path = self._shelf.new_path(cause.name)
        LOG.warning("%s: recording %.1f s into %s", cause.text, self.ring.seconds(now_ns), path)
        limits = self._max_memory_bytes, self._max_file_bytes
        self._writing = _Recording(self._shelf, path, [cause, *records], *limits)
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


class _Recording(threading.Thread):
    """Writes one file."""

    def __init__(
        self, shelf: Shelf, path: Path, begin: Sequence[Record | Cause], max_waiting_bytes: int, max_file_bytes: int
    ) -> None:
        super().__init__(name="recording", daemon=True)
        self._shelf, self.path = shelf, path
        self._queue: queue.SimpleQueue[Record | Cause | None] = queue.SimpleQueue()
        self._begin = begin
        self._waiting_bytes, self._max_waiting_bytes = 0, max_waiting_bytes
        self._max_file_bytes = max_file_bytes
        self._lock = threading.Lock()
        self.error = ""

    def put(self, item: Record | Cause) -> bool:
        """Have an item written; false: too much is waiting already."""
        size = item.size if isinstance(item, Record) else 0
        with self._lock:
            if self._waiting_bytes + size > self._max_waiting_bytes:
                return False
            self._waiting_bytes += size
        self._queue.put(item)
        return True

    def end(self) -> None:
        """Nothing more will be put."""
        self._queue.put(None)

    def wait(self, timeout_s: float) -> Path:
        """Wait until the file is complete. Raises RecorderError."""
        self.join(timeout_s)
        if self.is_alive():
            raise RecorderError("RECORDING_IO", f"{self.path}: not written within {timeout_s:g} s")
        if self.error:
            code, _, message = self.error.partition(": ")
            raise RecorderError(code, message)
        return self.path

    def run(self) -> None:
        """Write until the end, or until the disk or the file is full."""
        try:
            self._shelf.make_room(sum(item.size for item in self._begin if isinstance(item, Record)))
            file = McapFile(self.path)
        except RecorderError as e:
            self._fail(e)
            return
        try:
            for item in self._begin:
                self._write(file, item)
            self._begin = ()
            file.flush(to_disk=True)
            self._follow(file)
            file.flush()
            self._why_no_more(file.size)  # makes room for what came since the last look
            file.finish()
        except RecorderError as e:
            file.discard()
            self._fail(e)
        except Exception as e:
            file.discard()
            LOG.exception("recording failed")
            self._fail(RecorderError("RECORDING_IO", f"{self.path}: {e!r}"))

    def _follow(self, file: McapFile) -> None:
        """Write what comes, until the end or as long as there is room."""
        look_s = time.monotonic() + _LOOK_S
        while True:
            if time.monotonic() >= look_s:
                look_s = time.monotonic() + _LOOK_S
                file.flush()
                if why := self._why_no_more(file.size):
                    LOG.warning("%s is closed early: %s", self.path.name, why)
                    return
            try:
                item = self._queue.get(timeout=max(0.0, look_s - time.monotonic()))
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, Record):
                with self._lock:
                    self._waiting_bytes -= item.size
            self._write(file, item)

    def _why_no_more(self, written: int) -> str:
        if written > self._max_file_bytes:
            return f"it has {written} bytes"
        try:
            self._shelf.make_room(_NEXT_BYTES, written)
        except RecorderError as e:
            return str(e)
        return ""

    def _write(self, file: McapFile, item: Record | Cause) -> None:
        if isinstance(item, Record):
            file.write(item)
        else:
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            file.note(METADATA, {"cause": item.name, "text": item.text, "at": at})

    def _fail(self, error: RecorderError) -> None:
        self.error = str(error)
        LOG.error("nothing was recorded: %s", error)
