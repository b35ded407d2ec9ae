# SPDX-License-Identifier: Apache-2.0
"""One pass over a file: its SHA-256, the SHA-256 of each tensor, and NaN or infinity, with one reused buffer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO

from vla_checkpoint.errors import ValueCheckError
from vla_checkpoint.files import BUFFER_BYTES, Cancel, PathLike, Progress, check_cancel, open_regular, read_exactly
from vla_checkpoint.header import Header
from vla_checkpoint.values import count_not_finite


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
) -> FileScan:
    """Read a safetensors file once, front to back.

    Args:
        path: the file ``header`` was read from.
        header: its checked header.
        values: whether to look for NaN and infinity.
        progress: called with the bytes done since the last call.
        cancel: asked after each buffer; true stops.

    Raises:
        FileError: it cannot be read, or is shorter than its header says.
        CancelledCheckError: ``cancel`` said so.
    """
    whole = hashlib.sha256()
    digests: dict[str, str] = {}
    not_finite: dict[str, int] = {}
    buffer = memoryview(bytearray(BUFFER_BYTES))

    def read(file: FileIO, count: int, consume: Callable[[memoryview], None]) -> None:
        while count:
            view = buffer[: min(count, BUFFER_BYTES)]
            read_exactly(file, path, view)
            whole.update(view)
            consume(view)
            count -= len(view)
            if progress is not None:
                progress(len(view))
            check_cancel(cancel, path)

    with open_regular(path) as file:
        read(file, header.data_start, lambda view: None)
        for info in header.tensors.values():
            one = hashlib.sha256()
            bad = 0

            def consume(view: memoryview, *, dtype: str = info.dtype, one: hashlib._Hash = one) -> None:
                nonlocal bad
                one.update(view)
                if values:
                    bad += count_not_finite(dtype, view)

            read(file, info.nbytes, consume)
            digests[info.name] = one.hexdigest()
            if bad:
                not_finite[info.name] = bad
        while count := file.readinto(buffer):  # it grew since the header was read: hash what is there
            whole.update(buffer[:count])
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
