# SPDX-License-Identifier: Apache-2.0
"""A download that grows in several places: parts of one length, each of which is there from its beginning to somewhere.

How far each part is stands in a table beside the file, eight bytes a part, written after the part's bytes. So what a killed
process has written counts to the last byte. A power loss may keep the table and lose bytes: then the note counts, written after a
flush.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from vla_ota_manager.store.filesystem import Filesystem

PART_BYTES = 32 << 20
_COUNT = struct.Struct("<Q")


@dataclass
class Parts:
    """How much is there of each part of a file of ``size`` bytes."""

    size: int
    there: list[int]
    """Bytes of each part, counted from its beginning."""

    @classmethod
    def beginning(cls, size: int, count: int) -> Parts:
        """Return what is there if nothing but the first ``count`` bytes is."""
        starts = range(0, size, PART_BYTES)
        return cls(size, [max(0, min(count - start, PART_BYTES, size - start)) for start in starts])

    @classmethod
    def counted(cls, size: int, counts: Sequence[object], present: int) -> Parts | None:
        """Return what counts that were read say, of a file that is ``present`` bytes long; None if they are of no use."""
        if len(counts) != len(range(0, size, PART_BYTES)):
            return None
        there = []
        for start, count in zip(range(0, size, PART_BYTES), counts, strict=True):
            if not isinstance(count, int):
                return None
            there.append(max(0, min(count, PART_BYTES, size - start, present - start)))
        return cls(size, there)

    @classmethod
    def from_table(cls, size: int, table: bytes, present: int) -> Parts | None:
        """Return what a table says, likewise."""
        if len(table) % _COUNT.size:
            return None
        return cls.counted(size, [count for (count,) in _COUNT.iter_unpack(table)], present)

    def to_table(self) -> bytes:
        """Return the table's bytes."""
        return b"".join(map(_COUNT.pack, self.there))

    def end(self, index: int) -> int:
        """Return where a part ends in the file [bytes]."""
        return min(self.size, (index + 1) * PART_BYTES)

    def reached(self, index: int) -> int:
        """Return up to where a part is there [bytes]."""
        return index * PART_BYTES + self.there[index]

    def front(self, known: int = 0) -> int:
        """Return up to where everything is there [bytes]; ``known``: it is so far at least."""
        for index in range(known // PART_BYTES, len(self.there)):
            if self.reached(index) < self.end(index):
                return self.reached(index)
        return self.size

    @property
    def total(self) -> int:
        """All that is there [bytes]."""
        return sum(self.there)


class PartsFile:
    """A download and its table, open to be written and read anywhere. Use as a context manager."""

    def __init__(self, filesystem: Filesystem, path: Path, table: Path, parts: Parts) -> None:
        self.parts = parts
        self._table = filesystem.scatter(table)
        self._data = filesystem.scatter(path)
        self._table.write(parts.to_table(), 0)
        self._table.truncate(len(parts.to_table()))

    def write(self, index: int, data: bytes) -> None:
        """Write what comes next of a part."""
        self._data.write(data, self.parts.reached(index))
        self.parts.there[index] += len(data)
        self._table.write(_COUNT.pack(self.parts.there[index]), index * _COUNT.size)

    def read(self, offset: int, count: int) -> bytes:
        """Return at most so many bytes from ``offset`` on."""
        return self._data.read(count, offset)

    def flush(self) -> None:
        """Return when everything written so far is on the disk; the table need not be."""
        self._data.flush()

    def __enter__(self) -> PartsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()
        self._table.close()
