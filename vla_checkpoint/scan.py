# SPDX-License-Identifier: Apache-2.0
"""A safetensors file read once: its SHA-256, the SHA-256 of each tensor, and NaN or infinity, in two threads and few buffers.

One thread reads and hashes the file; the caller's hashes tensors and looks at values, in the same block while it is in the cache.
Hashing lets other threads run, so on two processors this takes about as long as one pass of hashlib. Nothing is mapped: a file
that shrinks, or a disk that fails, is an error and not the end of the process.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

from vla_checkpoint.errors import ValueCheckError
from vla_checkpoint.files import Cancel, PathLike, Progress, check_cancel, open_regular, read_exactly
from vla_checkpoint.header import Header, TensorInfo
from vla_checkpoint.values import count_not_finite

BLOCK_BYTES = 1 << 20
"""Read at once: a multiple of every element's size, and at home in an L2 cache."""
_BLOCKS = 4

Piece = tuple[TensorInfo | None, int, int]
"""Of which tensor (None: of none), and where it begins and ends in the file [bytes]."""


@dataclass(frozen=True)
class FileScan:
    """What one pass found."""

    sha256: str
    """Of the whole file."""
    tensors: Mapping[str, str]
    """Tensor → SHA-256 of its raw bytes."""
    not_finite: Mapping[str, int]
    """Tensor → number of NaN and infinite elements, for tensors that have any."""


def scan_file(
    path: PathLike,
    header: Header,
    *,
    values: bool = True,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    wait: Callable[[int], None] | None = None,
) -> FileScan:
    """Read a safetensors file once, front to back.

    Args:
        path: the file ``header`` was read from.
        header: its checked header.
        values: whether to look for NaN and infinity.
        progress: called in the caller's thread with the bytes done since the last call.
        cancel: asked there after each block; true stops.
        wait: called in the thread that reads, before it reads what lies before that offset; what it raises ends the scan.

    Raises:
        FileError: it cannot be read, or is shorter than its header says.
        CancelledCheckError: ``cancel`` said so.
    """
    whole, one, bad = hashlib.sha256(), hashlib.sha256(), 0
    digests: dict[str, str] = {}
    not_finite: dict[str, int] = {}
    with _read_ahead(path, header, whole, wait) as blocks:
        for view, pieces in blocks:
            origin = pieces[0][1]
            for info, start, end in pieces:
                if info is None:
                    continue
                if start == info.start:
                    one, bad = hashlib.sha256(), 0
                part = view[start - origin : end - origin]
                one.update(part)
                bad += count_not_finite(info.dtype, part) if values else 0
                if end == info.end:
                    digests[info.name] = one.hexdigest()
                    if bad:
                        not_finite[info.name] = bad
            if progress is not None and origin < header.file_size:
                progress(len(view))
            check_cancel(cancel, path)
    return FileScan(whole.hexdigest(), digests, not_finite)


def check_values(path: PathLike, scan: FileScan) -> None:
    """Refuse a file with NaN or infinity in it.

    Raises:
        ValueCheckError: ``VALUES_NOT_FINITE``.
    """
    if scan.not_finite:
        name, count = next(iter(scan.not_finite.items()))
        more = f", and {len(scan.not_finite) - 1} more tensors" if len(scan.not_finite) > 1 else ""
        raise ValueCheckError("VALUES_NOT_FINITE", path, f"{count} NaN or infinite values in {name!r}{more}")


def _pieces(header: Header) -> Iterator[Piece]:
    """Cut a file into pieces of a block at most, none of which cuts an element in two."""
    parts: list[TensorInfo | None] = [None, *header.tensors.values()]
    for info in parts:
        start, end = (0, header.data_start) if info is None else (info.start, info.end)
        yield info, start, min(start + BLOCK_BYTES, end)
        for cut in range(start + BLOCK_BYTES, end, BLOCK_BYTES):
            yield info, cut, min(cut + BLOCK_BYTES, end)


def _blocks(header: Header) -> Iterator[list[Piece]]:
    """Group pieces that follow each other into blocks: small tensors are not worth a hand-over each."""
    block: list[Piece] = []
    for piece in _pieces(header):
        if block and piece[2] - block[0][1] > BLOCK_BYTES:
            yield block
            block = []
        block.append(piece)
    yield block


@contextmanager
def _read_ahead(
    path: PathLike, header: Header, whole: hashlib._Hash, wait: Callable[[int], None] | None
) -> Iterator[Iterator[tuple[memoryview, list[Piece]]]]:
    """Yield what yields a file's blocks, each valid until the next is asked for; ``whole`` is complete at their end."""
    free: SimpleQueue[memoryview | None] = SimpleQueue()
    full: SimpleQueue[tuple[memoryview, list[Piece]] | BaseException | None] = SimpleQueue()
    for _ in range(_BLOCKS):
        free.put(memoryview(bytearray(BLOCK_BYTES)))

    def read() -> None:
        try:
            with open_regular(path) as file:
                for pieces in _blocks(header):
                    if (buffer := free.get()) is None:
                        return
                    view = buffer[: pieces[-1][2] - pieces[0][1]]
                    if wait is not None:
                        wait(pieces[-1][2])
                    read_exactly(file, path, view)
                    full.put((buffer, pieces))
                    whole.update(view)
                end = header.file_size
                while (buffer := free.get()) is not None and (count := file.readinto(buffer)):
                    whole.update(buffer[:count])  # it grew since the header was read: hash what is there
                    full.put((buffer, [(None, end, end + count)]))
                    end += count
            full.put(None)
        except BaseException as e:
            full.put(e)

    def taken() -> Iterator[tuple[memoryview, list[Piece]]]:
        while (item := full.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            buffer, pieces = item
            yield buffer[: pieces[-1][2] - pieces[0][1]], pieces
            free.put(buffer)

    thread = threading.Thread(target=read, name="vla_hash_file", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        free.put(None)
        thread.join()
