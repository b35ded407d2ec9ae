# SPDX-License-Identifier: Apache-2.0
"""Writes one file in a thread of its own, so that a slow disk costs no message."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from vla_recorder.errors import RecorderError
from vla_recorder.mcap_file import Item, McapFile
from vla_recorder.records import Record
from vla_recorder.shelf import Shelf

LOG = logging.getLogger("vla_recorder")

_LOOK_S = 1.0  # how often what is written is handed to the kernel, and the disk looked at
_NEXT_BYTES = 1 << 20
"""Room for the index of a recording and for what comes until the next look [bytes]."""


class FileWriter(threading.Thread):
    """Writes ``begin`` and what is put, until the end.

    Args:
        shelf: makes room.
        path: of the complete file.
        begin: written first; not bounded.
        max_waiting_bytes: of what is put and not written yet [bytes].
        max_file_bytes: a larger file is closed early [bytes].
        whole: a file that would have to be closed early is of no use, and is discarded.
    """

    def __init__(
        self,
        shelf: Shelf,
        path: Path,
        begin: Sequence[Item],
        *,
        max_waiting_bytes: int,
        max_file_bytes: int,
        whole: bool = False,
    ) -> None:
        super().__init__(name="recording", daemon=True)
        self._shelf, self.path = shelf, path
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._begin = begin
        self._waiting_bytes, self._max_waiting_bytes = 0, max_waiting_bytes
        self._max_file_bytes, self._whole = max_file_bytes, whole
        self._lock = threading.Lock()
        self._unwanted = False
        self.error = ""
        """Why there is no file, as ``CODE: text``."""

    def put(self, item: Item) -> bool:
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

    def drop(self) -> None:
        """Nothing more will be put, and no file is wanted."""
        self._unwanted = True
        self.end()

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
                _write(file, item)
            self._begin = ()
            file.flush(to_disk=True)
            self._follow(file)
            if self._unwanted:
                file.discard()
                return
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
        """Write what comes, until the end or as long as there is room. Raises RecorderError."""
        look_s = time.monotonic() + _LOOK_S
        while True:
            if time.monotonic() >= look_s:
                look_s = time.monotonic() + _LOOK_S
                file.flush()
                if why := self._why_no_more(file.size):
                    if self._whole:
                        raise why
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
            _write(file, item)

    def _why_no_more(self, written: int) -> RecorderError | None:
        if written > self._max_file_bytes:
            return RecorderError("DISK_FULL", f"{self.path}: it has {written} bytes, more than one may have")
        try:
            self._shelf.make_room(_NEXT_BYTES, written)
        except RecorderError as e:
            return e
        return None

    def _fail(self, error: RecorderError) -> None:
        self.error = str(error)
        LOG.error("nothing was recorded: %s", error)


def _write(file: McapFile, item: Item) -> None:
    if isinstance(item, Record):
        file.write(item)
    else:
        file.note(item)
