# SPDX-License-Identifier: Apache-2.0
"""Making a delta: each tensor of the target is found in a base, coded against one, or coded by itself, whichever is smallest."""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from vla_checkpoint.delta.apply import default_workers
from vla_checkpoint.delta.blocks import encode_difference, encode_numbers
from vla_checkpoint.delta.format import BLOCK_BYTES, MAX_RECORDS, RECORD, Codec, FileRef, write_delta
from vla_checkpoint.delta.numbers import FLOAT_TYPES
from vla_checkpoint.digest import sha256_file
from vla_checkpoint.errors import DeltaError, FileError
from vla_checkpoint.files import PathLike, Progress, open_regular
from vla_checkpoint.header import Header, TensorInfo, read_header

_SMALL_NUMBERS = 1 << 16
"""Below this the classes of rows and columns may cost more than they save: both ways are tried."""
_ZSTD_LEVEL = 3


@dataclass(frozen=True)
class _Source:
    """A file that is read from."""

    path: PathLike
    descriptor: int
    header: Header

    def read(self, offset: int, size: int) -> bytes:
        data = os.pread(self.descriptor, size, offset)
        if len(data) != size:
            raise FileError("FILE_UNREADABLE", self.path, "ended while it was being read")
        return data

    def digest(self, info: TensorInfo) -> str:
        """Return the SHA-256 of a tensor."""
        digest = hashlib.sha256()
        for begin in range(info.start, info.end, BLOCK_BYTES):
            digest.update(self.read(begin, min(BLOCK_BYTES, info.end - begin)))
        return digest.hexdigest()


@dataclass(frozen=True)
class _Part:
    """What one record makes of the target, and how."""

    size: int
    codec: Codec = Codec.COPY
    dtype: int = 0
    base: int = 0
    columns: int = 0
    offset: int = 0
    stream: bytes = b""

    def follows(self, other: _Part) -> bool:
        """Return whether both are one copy."""
        copies = self.codec is Codec.COPY and other.codec is Codec.COPY and self.base == other.base
        return copies and self.offset == other.offset + other.size


@dataclass(frozen=True)
class _Block:
    """A part of the target to be coded."""

    start: int
    size: int
    dtype: str = ""
    columns: int = 0
    """Numbers of a row of its tensor; 0 = it has no rows worth the name."""
    base: tuple[int, int] | None = None
    """Index of a base, and where in it the part's counterpart begins."""


def make_delta(
    bases: Sequence[PathLike],
    target: PathLike,
    out: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the delta that makes the safetensors file ``target`` of the safetensors files ``bases``.

    Args:
        bases: where the tensors of the target were, as one file or shards.
        target: the new file.
        out: the delta; replaced when it is complete.
        workers: threads that encode; default: as many as are worth it.
        progress: called with the bytes of the target that were coded since the last call.

    Raises:
        FileError, HeaderError: a file cannot be read or written, or is no safetensors file.
        DeltaError: DELTA_FORMAT: the target has too many parts for a delta.
    """
    threads = default_workers() if workers is None else workers
    aside, streams = out.with_name(out.name + ".partial"), out.with_name(out.name + ".streams")
    with ExitStack() as stack:
        sources = [_open(stack, path) for path in (*bases, target)]
        pool = stack.enter_context(ThreadPoolExecutor(max(1, threads), "delta"))
        try:
            digests = [pool.submit(sha256_file, source.path) for source in sources]
            with streams.open("wb") as file:
                records = _encode_all(_Encoder(sources[:-1], sources[-1]), pool, threads, file, progress)
            refs = [FileRef(d.result(), s.header.file_size) for d, s in zip(digests, sources, strict=True)]
            write_delta(aside, refs[-1], tuple(refs[:-1]), records, streams)
            aside.replace(out)
        except OSError as e:
            raise FileError("FILE_NOT_WRITTEN", out, e.strerror or str(e)) from e
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
                streams.unlink(missing_ok=True)


def _open(stack: ExitStack, path: PathLike) -> _Source:
    header = read_header(path)
    return _Source(path, stack.enter_context(open_regular(path)).fileno(), header)


def _encode_all(
    encoder: _Encoder, pool: ThreadPoolExecutor, threads: int, streams: Any, progress: Progress | None
) -> npt.NDArray[Any]:
    """Code all blocks, write their streams, and return their records."""
    parts: list[_Part] = []
    pending: deque[Future[_Part]] = deque()

    def take() -> None:
        part = pending.popleft().result()
        streams.write(part.stream)
        if progress is not None:
            progress(part.size)
        if parts and part.follows(parts[-1]):
            parts[-1] = replace(parts[-1], size=parts[-1].size + part.size)
        else:
            parts.append(part)

    for block in encoder.blocks():
        pending.append(pool.submit(encoder.encode, block))
        if len(pending) > threads + 1:
            take()
    while pending:
        take()
    if len(parts) > MAX_RECORDS:
        raise DeltaError("DELTA_FORMAT", encoder.target.path, f"{len(parts)} parts, a delta holds {MAX_RECORDS}")
    rows = [(p.codec, p.dtype, p.base, p.columns, p.size, p.offset, len(p.stream)) for p in parts]
    return np.array(rows, RECORD)


class _Encoder:
    """Finds counterparts and codes blocks."""

    def __init__(self, bases: Sequence[_Source], target: _Source) -> None:
        self.bases, self.target = bases, target
        self._named = {info.name: (i, info) for i, base in enumerate(bases) for info in base.header.tensors.values()}
        self._of_size: dict[int, list[tuple[int, TensorInfo]]] = {}
        for i, base in enumerate(bases):
            for info in base.header.tensors.values():
                self._of_size.setdefault(info.nbytes, []).append((i, info))
        self._digests: dict[tuple[int, str], str] = {}

    def blocks(self) -> Iterator[_Block]:
        """Yield the parts of the target in order."""
        start = self.target.header.data_start
        same = next((i for i, base in enumerate(self.bases) if base.header.data_start == start), None)
        for begin in range(0, start, BLOCK_BYTES):
            size = min(BLOCK_BYTES, start - begin)
            yield _Block(begin, size, base=None if same is None else (same, begin))
        for info in self.target.header.tensors.values():
            if info.nbytes:
                yield from self._blocks_of(info)

    def _blocks_of(self, info: TensorInfo) -> Iterator[_Block]:
        found = self._counterpart(info)
        kind = FLOAT_TYPES.get(info.dtype)
        dtype, columns, step = "", 0, BLOCK_BYTES
        if kind is not None:
            dtype = info.dtype
            width = math.prod(info.shape[1:])
            if len(info.shape) > 1 and info.shape[0] > 1 and 1 < width * kind.nbytes <= BLOCK_BYTES // 4:
                columns, step = width, BLOCK_BYTES // (width * kind.nbytes) * width * kind.nbytes
        for begin in range(0, info.nbytes, step):
            base = None if found is None else (found[0], found[1].start + begin)
            yield _Block(info.start + begin, min(step, info.nbytes - begin), dtype, columns, base)

    def _counterpart(self, info: TensorInfo) -> tuple[int, TensorInfo] | None:
        """Return the base's tensor of the same name and shape; if it is gone or another, one of the same content."""
        named = self._named.get(info.name)
        if named is not None and (named[1].dtype, named[1].shape) == (info.dtype, info.shape):
            return named
        candidates = self._of_size.get(info.nbytes, [])
        if candidates:
            wanted = self.target.digest(info)
            for index, other in candidates:
                key = index, other.name
                if key not in self._digests:
                    self._digests[key] = self.bases[index].digest(other)
                if self._digests[key] == wanted:
                    return index, other
        return None

    def encode(self, block: _Block) -> _Part:
        """Code one block in the smallest way."""
        data = self.target.read(block.start, block.size)
        kind = FLOAT_TYPES.get(block.dtype)
        best = _Part(block.size, Codec.RAW, stream=data)
        if block.base is not None:
            index, offset = block.base
            old = self.bases[index].read(offset, block.size)
            if old == data:
                return _Part(block.size, Codec.COPY, base=index, offset=offset)
            if kind is not None:
                one, other = np.frombuffer(old, kind.integer), np.frombuffer(data, kind.integer)
                tries = {block.columns, 0} if len(one) < _SMALL_NUMBERS else {block.columns}
                for columns in sorted(tries):
                    stream = encode_difference(one, other, kind, columns)
                    part = _Part(block.size, Codec.DIFFERENCE, kind.code, index, columns, offset, stream)
                    best = min(best, part, key=_cost)
        if len(best.stream) > block.size // 2:  # then plain ways may be as good
            best = min(best, _Part(block.size, Codec.ZSTD, stream=zstandard.compress(data, _ZSTD_LEVEL)), key=_cost)
            if kind is not None:
                stream = encode_numbers(np.frombuffer(data, kind.integer))
                best = min(best, _Part(block.size, Codec.NUMBERS, kind.code, stream=stream), key=_cost)
        return best


def _cost(part: _Part) -> int:
    return len(part.stream)
