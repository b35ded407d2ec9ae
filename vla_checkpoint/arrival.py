# SPDX-License-Identifier: Apache-2.0
"""A weight file whose SHA-256 was checked while it arrived: what is left to check on the disk.

Tensors follow each other without a gap from the header's end to the file's (:mod:`vla_checkpoint.header`). So where the
header's bytes are those that arrived, by their SHA-256, and every tensor's bytes have the SHA-256 that the manifest says, every
byte of the file was held against a digest, and hashing the file as a whole once more would find nothing else. (A manifest whose
tensors are not those of its file is found as before: what arrived does not hold then.) Tensors can be hashed side by side,
which a file cannot. Whatever does not hold is left to a full scan, which says what it is.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from vla_checkpoint import limits
from vla_checkpoint.errors import FileError
from vla_checkpoint.files import Cancel, PathLike, Progress, check_cancel, open_regular
from vla_checkpoint.header import LENGTH_BYTES, Header, TensorInfo
from vla_checkpoint.scan import BLOCK_BYTES
from vla_checkpoint.values import count_not_finite

_THREADS = 2


class ArrivalDigest:
    """The SHA-256 of a file that arrives in pieces, and of the safetensors header that it may begin with."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self._length = b""
        self._left = LENGTH_BYTES
        self.header = ""
        """SHA-256 of the header and its length, once they have arrived; empty until then, and where there is none."""

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        while self._left and data:
            part, data = data[: self._left], data[self._left :]
            self._whole.update(part)
            self._left -= len(part)
            if len(self._length) < LENGTH_BYTES:
                self._length += part
                length = int.from_bytes(self._length, "little")
                if not self._left and length <= limits.HEADER_BYTES:
                    self._left = length
            elif not self._left:
                self.header = self._whole.hexdigest()
        self._whole.update(data)

    def hexdigest(self) -> str:
        """Return the SHA-256 of what has arrived so far as 64 lower-case hexadecimal digits."""
        return self._whole.hexdigest()


def is_as_arrived(
    path: PathLike,
    header: Header,
    header_sha256: str,
    tensors: Mapping[str, str],
    *,
    values: bool = True,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> bool:
    """Whether a file has the header that arrived, the tensors of its manifest, and (``values``) no NaN or infinity.

    Args:
        path: the file ``header`` was read from.
        header: its checked header.
        header_sha256: :attr:`ArrivalDigest.header` of the file.
        tensors: SHA-256 of each tensor.
        values, progress, cancel: see :func:`vla_checkpoint.scan.scan_file`.

    Raises:
        FileError: it cannot be read, or is shorter than its header says.
        CancelledCheckError: ``cancel`` said so.
    """
    said: SimpleQueue[int] = SimpleQueue()
    stop = threading.Event()

    def hold(share: list[TensorInfo]) -> bool:
        """Whether these tensors hold; says how many bytes it has done, and 0 at its end."""
        buffer = memoryview(bytearray(BLOCK_BYTES))
        try:
            for info in share:
                one = hashlib.sha256()
                for start in range(info.start, info.end, BLOCK_BYTES):
                    view = buffer[: min(BLOCK_BYTES, info.end - start)]
                    _read_at(file.fileno(), path, start, view)
                    one.update(view)
                    if stop.is_set() or (values and count_not_finite(info.dtype, view)):
                        return False
                    said.put(len(view))
                if one.hexdigest() != tensors[info.name]:
                    return False
            return True
        finally:
            said.put(0)

    with open_regular(path) as file:
        beginning = memoryview(bytearray(header.data_start))
        _read_at(file.fileno(), path, 0, beginning)
        if (
            hashlib.sha256(beginning).hexdigest() != header_sha256
            or os.fstat(file.fileno()).st_size != header.file_size
        ):
            return False
        with ThreadPoolExecutor(_THREADS, "vla_hash_tensors") as pool:
            try:
                running = [pool.submit(hold, share) for share in _shares(header)]
                _follow(path, said, header.data_start, progress, cancel)
            finally:
                stop.set()
        return all(share.result() for share in running)


def _follow(
    path: PathLike, said: SimpleQueue[int], done: int, progress: Progress | None, cancel: Cancel | None
) -> None:
    """Pass on what the threads say, in the caller's thread, until the last has ended."""
    ended = 0
    while ended < _THREADS:
        if progress is not None and done:
            progress(done)
        check_cancel(cancel, path)
        done = said.get()
        ended += not done


def _shares(header: Header) -> list[list[TensorInfo]]:
    """Deal tensors to the threads, the largest first and each to the one that has the least."""
    shares: list[list[TensorInfo]] = [[] for _ in range(_THREADS)]
    sizes = [0] * _THREADS
    for info in sorted(header.tensors.values(), key=lambda info: info.nbytes, reverse=True):
        least = sizes.index(min(sizes))
        shares[least].append(info)
        sizes[least] += info.nbytes
    return shares


def _read_at(fd: int, path: PathLike, offset: int, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            raise FileError("FILE_UNREADABLE", path, "ended while it was being read")
        done += count
