# SPDX-License-Identifier: Apache-2.0
"""Making the target of a delta: blocks are decoded side by side and written in order, in bounded memory."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_checkpoint.delta.blocks import BlockError, decode_difference, decode_numbers, decompress
from vla_checkpoint.delta.format import BLOCK_BYTES, Codec, Delta, FileRef, read_delta
from vla_checkpoint.delta.numbers import FLOAT_TYPES_BY_CODE
from vla_checkpoint.digest import sha256_file
from vla_checkpoint.errors import DeltaError, FileError
from vla_checkpoint.files import Cancel, PathLike, Progress, check_cancel, file_size, open_regular

MAX_WORKERS = 3
"""Threads, at most: each needs up to 30 MB."""


def default_workers() -> int:
    """Return how many threads are worth it here."""
    return min(MAX_WORKERS, os.cpu_count() or 1)


@dataclass(frozen=True)
class _Piece:
    """A record, or a part of a long copy."""

    codec: int
    dtype: int
    base: int
    columns: int
    size: int
    offset: int
    stream: int
    """Offset of its stream in the delta file."""
    length: int


def apply_delta(
    path: PathLike,
    bases: Sequence[PathLike],
    write: Callable[[bytes], Any],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> FileRef:
    """Write the target of a delta, in order; return what it is. Memory stays below 150 MB whatever the sizes.

    Args:
        path: the delta.
        bases: a file for each of its ``bases``, in that order.
        write: takes the target piece by piece. What it got is worth nothing unless this function returns.
        workers: threads that decode; default: as many as are worth it.
        progress: called with the bytes written since the last call.
        cancel: asked between blocks; true stops.

    Raises:
        FileError: a file cannot be read.
        DeltaError: DELTA_FORMAT; DELTA_BASE: a base is not the one that the delta was made for; DELTA_RESULT: the result is not
            the target.
        CancelledCheckError: ``cancel`` said so.
    """
    delta = read_delta(path)
    if len(bases) != len(delta.bases):
        raise DeltaError("DELTA_BASE", path, f"{len(bases)} bases given, the delta needs {len(delta.bases)}")
    digest = hashlib.sha256()
    with ExitStack() as stack:
        file = stack.enter_context(open_regular(path))
        sources = []
        for ref, base in zip(delta.bases, bases, strict=True):
            source = stack.enter_context(open_regular(base))
            if file_size(source) != ref.size:
                raise DeltaError("DELTA_BASE", base, f"{file_size(source)} bytes, the delta is against {ref.size}")
            sources.append((source.fileno(), base))

        def decode(piece: _Piece) -> bytes:
            return _decode(piece, (file.fileno(), path), sources)

        try:
            for part in _in_order(_pieces(delta), decode, default_workers() if workers is None else workers):
                digest.update(part)
                write(part)
                if progress is not None:
                    progress(len(part))
                check_cancel(cancel, path)
        except BlockError as e:
            _check_bases(delta, bases)
            raise DeltaError("DELTA_FORMAT", path, str(e)) from e
    if digest.hexdigest() != delta.target.sha256:
        _check_bases(delta, bases)
        raise DeltaError(
            "DELTA_RESULT", path, f"the result hashes to {digest.hexdigest()}, promised {delta.target.sha256}"
        )
    return delta.target


def apply_to_file(path: PathLike, bases: Sequence[PathLike], out: Path, *, progress: Progress | None = None) -> FileRef:
    """Write the target of a delta to ``out``: aside, flushed, checked, renamed. Raises as :func:`apply_delta`."""
    aside = out.with_name(out.name + ".partial")
    try:
        with aside.open("wb") as file:

            def write(data: bytes) -> None:
                try:
                    file.write(data)
                except OSError as e:  # else it would be taken for one of reading
                    raise FileError("FILE_NOT_WRITTEN", out, e.strerror or str(e)) from e

            made = apply_delta(path, bases, write, progress=progress)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(out)
    except OSError as e:
        raise FileError("FILE_NOT_WRITTEN", out, e.strerror or str(e)) from e
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    return made


def _check_bases(delta: Delta, bases: Sequence[PathLike]) -> None:
    """Blame a base if it is another file than the delta was made for."""
    for ref, base in zip(delta.bases, bases, strict=True):
        found = sha256_file(base)
        if found != ref.sha256:
            raise DeltaError("DELTA_BASE", base, f"hashes to {found}, the delta is against {ref.sha256}")


def _pieces(delta: Delta) -> Iterator[_Piece]:
    stream = delta.streams
    for record in delta.records:
        codec, dtype, base, columns, size, offset, length = record.item()
        for begin in range(0, size, BLOCK_BYTES):
            part = min(BLOCK_BYTES, size - begin)
            yield _Piece(codec, dtype, base, columns, part, offset + begin, stream, length)
        stream += length


def _in_order(pieces: Iterator[_Piece], decode: Callable[[_Piece], bytes], workers: int) -> Iterator[bytes]:
    """Yield what pieces decode to, in their order, with few of them under way."""
    pending: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(max(1, workers), "delta") as pool:
        try:
            for piece in pieces:
                pending.append(pool.submit(decode, piece))
                if len(pending) > workers + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _decode(piece: _Piece, delta: tuple[int, PathLike], bases: list[tuple[int, PathLike]]) -> bytes:
    if piece.codec == Codec.COPY:
        return _read(*bases[piece.base], piece.offset, piece.size)
    stream = memoryview(_read(*delta, piece.stream, piece.length))
    if piece.codec == Codec.RAW:
        return bytes(stream)
    if piece.codec == Codec.ZSTD:
        return decompress(stream, piece.size)
    kind = FLOAT_TYPES_BY_CODE[piece.dtype]
    if piece.codec == Codec.NUMBERS:
        return decode_numbers(stream, kind, piece.size // kind.nbytes).tobytes()
    old = np.frombuffer(_read(*bases[piece.base], piece.offset, piece.size), kind.integer)
    return decode_difference(old, stream, kind, piece.columns).tobytes()


def _read(descriptor: int, path: PathLike, offset: int, size: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise FileError("FILE_UNREADABLE", path, "ended while it was being read")
    return data
