# SPDX-License-Identifier: Apache-2.0
"""Shared memory with a versioned header: one writer, any number of readers, nobody waits.

An arena is a memfd that its creator hands to other processes over a socket. It holds a ring of equal slots. The writer
marks the slot after the newest as in progress, fills it, marks it with its sequence number and publishes that number. A
reader copies the newest slot and accepts the copy if the slot's mark was the wanted number before and after (a sequence
lock).

Aligned 64-bit stores do not tear on x86-64 and AArch64. AArch64 may reorder them, so a full barrier stands between marks
and payload: releasing and re-acquiring a lock orders everything before against everything after (release then acquire is
sequentially consistent there), for every observer of the memory.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
_T = TypeVar("_T")

MAGIC = 0x564C_4141_5245_4E41  # "VLAARENA"
VERSION = 1
IN_PROGRESS = (1 << 64) - 1
_HEADER_BYTES = 4096
_HEADER = struct.Struct("<QIIQQ")  # magic, version, slots, slot bytes, layout hash
_NEWEST = 64 // 8  # which 64-bit word is the newest sequence number, on a cache line of its own
_SLOT_HEAD = 64


class ArenaError(RuntimeError):
    """The memory handed over is not the arena that was expected."""

    code = "ARENA_MISMATCH"


@dataclass(frozen=True)
class Field:
    """One array of a record: ``shape`` of ``dtype`` (a numpy name)."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()


class Layout:
    """A record of named arrays, aligned to 64 bytes; small ones to 8, so that they share cache lines."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self.offsets: dict[str, int] = {}
        offset = 0
        for field in self.fields:
            size = int(np.dtype(field.dtype).itemsize * np.prod(field.shape, dtype=np.int64))
            self.offsets[field.name] = _aligned(offset, 64 if size >= 64 else 8)
            offset = self.offsets[field.name] + size
        self.size = _aligned(offset, 64)

    def views(self, buffer: memoryview) -> dict[str, Array]:
        """Return the record's arrays as views of ``buffer`` (at least ``size`` bytes)."""
        return {
            f.name: np.frombuffer(buffer, f.dtype, int(np.prod(f.shape, dtype=np.int64)), self.offsets[f.name]).reshape(
                f.shape
            )
            for f in self.fields
        }

    def packed(self, names: Sequence[str] | None = None) -> struct.Struct:
        """Return the record, or these fields of it, as one structure: a number for each scalar, bytes for each array."""
        text, end = "<", 0
        for field in self.fields:
            if names is not None and field.name not in names:
                continue
            dtype, offset = np.dtype(field.dtype), self.offsets[field.name]
            size = dtype.itemsize * math.prod(field.shape)
            text += f"{offset - end}x" + (f"{size}s" if field.shape else dtype.char.replace("l", "q").replace("L", "Q"))
            end = offset + size
        return struct.Struct(text)

    def to_json(self) -> list[list[Any]]:
        """Return a JSON form that :meth:`from_json` reads."""
        return [[f.name, f.dtype, list(f.shape)] for f in self.fields]

    @classmethod
    def from_json(cls, data: Sequence[Sequence[Any]]) -> Layout:
        """Rebuild a layout in another process."""
        return cls([Field(str(n), str(d), tuple(int(i) for i in s)) for n, d, s in data])

    @property
    def fingerprint(self) -> int:
        """Equal layouts have equal fingerprints in every process (FNV-1a, 64 bits)."""
        value = 0xCBF29CE484222325
        for byte in repr(self.to_json()).encode():
            value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
        return value


def _aligned(offset: int, to: int) -> int:
    return -(-offset // to) * to


class Arena:
    """A ring of records in a memfd. Create it in one process, :meth:`attach` in others."""

    def __init__(self, layout: Layout, slots: int, fd: int, *, created: bool) -> None:
        self.layout, self.slots, self.fd = layout, slots, fd
        self._slot_bytes = _SLOT_HEAD + layout.size
        size = _HEADER_BYTES + slots * self._slot_bytes
        if created:
            os.ftruncate(fd, size)
        elif os.fstat(fd).st_size != size:
            raise ArenaError(f"arena has {os.fstat(fd).st_size} bytes, its layout needs {size}")
        # Populated at once: no page fault waits on a control tick.
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
        expected = (MAGIC, VERSION, slots, self._slot_bytes, layout.fingerprint)
        if created:
            _HEADER.pack_into(self._map, 0, *expected)
        elif _HEADER.unpack_from(self._map, 0) != expected:
            raise ArenaError("arena header does not fit its layout")
        self._fence = threading.Lock()
        self._fence.acquire()
        # One object for all slots: the objects of a slot would be out of every cache when its turn comes.
        self._words = memoryview(self._map).cast("Q")  # for the marks
        self._packed = layout.packed()
        self._fields = {field.name: self._over_slots(field) for field in layout.fields}

    def _over_slots(self, field: Field) -> Array:
        """Return a field of every slot, ``[slots, …]``."""
        within = np.empty(field.shape, field.dtype).strides
        start = _HEADER_BYTES + _SLOT_HEAD + self.layout.offsets[field.name]
        shape, strides = (self.slots, *field.shape), (self._slot_bytes, *within)
        array: Array = np.ndarray(shape, field.dtype, self._map, start, strides)
        return array

    def _start(self, seq: int) -> int:
        """Return where a record's slot begins, with its mark."""
        return _HEADER_BYTES + seq % self.slots * self._slot_bytes

    @classmethod
    def create(cls, layout: Layout, slots: int = 4, name: str = "vla_ota") -> Arena:
        """Make a new arena of ``slots`` records (2 at least: one is being read while the next is written)."""
        if slots < 2:
            raise ValueError("an arena needs at least 2 slots")
        return cls(layout, slots, os.memfd_create(name, os.MFD_CLOEXEC), created=True)

    @classmethod
    def attach(cls, layout: Layout, slots: int, fd: int) -> Arena:
        """Map an arena that another process made. Raises :class:`ArenaError` if it is not the one described."""
        return cls(layout, slots, fd, created=False)

    @property
    def newest(self) -> int:
        """Sequence number of the newest record, 0 = none yet."""
        return self._words[_NEWEST]

    def write(self, values: dict[str, Array | float | int]) -> int:
        """Publish a record and return its sequence number (1, 2, …). One writer only.

        Every field must be given: a slot holds what was in it a round of the ring ago.
        """
        fields = self._fields
        if values.keys() != fields.keys():
            raise ValueError(f"fields {sorted(values.keys() ^ fields.keys())} are missing or unknown")
        seq, start = self._begin()
        slot = seq % self.slots
        for name, value in values.items():
            fields[name][slot] = value
        return self._publish(seq, start)

    def write_packed(self, *values: float | bytes) -> int:
        """Do what :meth:`write` does in one step. Values are in the layout's order, arrays are bytes of their dtype and size."""
        seq, start = self._begin()
        self._packed.pack_into(self._map, start + _SLOT_HEAD, *values)
        return self._publish(seq, start)

    def _begin(self) -> tuple[int, int]:
        """Mark the slot of the next record as in progress; return its sequence number and where the slot begins."""
        seq = self._words[_NEWEST] + 1
        start = self._start(seq)
        self._words[start // 8] = IN_PROGRESS
        self._barrier()
        return seq, start

    def _publish(self, seq: int, start: int) -> int:
        self._barrier()
        self._words[start // 8] = seq
        self._barrier()
        self._words[_NEWEST] = seq
        return seq

    def read(
        self, names: Sequence[str] | None = None, *, seq: int | None = None
    ) -> tuple[int, dict[str, Array]] | None:
        """Return ``(seq, copies)`` of the newest record, or of ``seq``; ``None`` if it is not there (any more)."""
        fields = self._fields

        def copy(seq: int) -> dict[str, Array]:
            return {name: fields[name][seq % self.slots].copy() for name in (names or fields)}

        return self._read(copy, seq)

    def read_packed(self, record: struct.Struct) -> tuple[int, tuple[Any, ...]] | None:
        """Do what :meth:`read` does in one step, with the fields of a ``layout.packed``."""
        return self._read(lambda seq: record.unpack_from(self._map, self._start(seq) + _SLOT_HEAD), None)

    def _read(self, copy: Callable[[int], _T], seq: int | None) -> tuple[int, _T] | None:
        """A few tries are enough: the writer would have to come round the whole ring during each copy."""
        for _ in range(4):
            wanted = self._words[_NEWEST] if seq is None else seq
            if wanted == 0:
                return None
            mark = self._start(wanted) // 8
            if self._words[mark] == wanted:
                self._barrier()
                copied = copy(wanted)
                self._barrier()
                if self._words[mark] == wanted:
                    return wanted, copied
            if seq is not None:
                return None
        return None

    def _barrier(self) -> None:
        self._fence.release()
        self._fence.acquire()

    def close(self) -> None:
        """Forget the memory. The memfd itself lives as long as some process maps it or holds its descriptor."""
        self._fields = {}
        self._words.release()
        self._map.close()
        os.close(self.fd)
