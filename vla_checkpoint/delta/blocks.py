# SPDX-License-Identifier: Apache-2.0
"""Coding of one block of numbers: differences sorted by what is expected of them, each sort coded with its own distribution.

The layout of the bytes is in docs/delta_format.md. A block decodes by itself, so that blocks are coded side by side. The entropy
coder is pcodec's (tANS over bins of its own choosing), restricted to its classic mode without its own differences.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import zstandard
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, wrapped

from vla_checkpoint.delta.contexts import LEVELS, MIDDLE, UNIT_BITS, Bytes, Classes, estimate, flat, levels
from vla_checkpoint.delta.lowrank import MAX_RANK, Factors, fit, is_worth_it
from vla_checkpoint.delta.numbers import FloatType, Integers, difference, exponents, ordered, restore, tiles, values

MAX_GROUPS = 32
_GROUP_NUMBERS = 4096
"""Fewer numbers are not worth a distribution of their own."""
_PCO_HEADER = wrapped.FileCompressor().write_header()
_PCO_NUMBERS = 1 << 24
_CONFIG = ChunkConfig(
    compression_level=8,
    mode_spec=ModeSpec.classic(),
    delta_spec=DeltaSpec.no_op(),
    paging_spec=PagingSpec.equal_pages_up_to(_PCO_NUMBERS),
)
_HEAD = struct.Struct("<BBhhL")
"""Groups, rank of the prediction, its scale, origin of the levels, length of the side stream [bytes]."""
_NO_STEP = np.float32(1e12)
_LENGTH = struct.Struct("<L")


class BlockError(Exception):
    """The bytes of a block are not what an encoder writes."""


def encode_difference(old: Integers, new: Integers, kind: FloatType, columns: int) -> bytes:
    """Return the stream that makes ``new`` of ``old``; ``columns`` is 0 where rows and columns mean nothing."""
    steps = difference(old, new)
    factors, classes = None, flat(len(old), 0)
    if columns:
        real = _real_steps(old, new, kind).reshape(-1, columns)
        factors = fit(real, kind)
        if factors is not None:
            left = steps.copy()
            factors.add(left, old, kind, -1)
            if is_worth_it(factors, steps, left):
                steps = left
                for _, rows in tiles(len(old), columns):
                    real[rows] -= factors.products(rows) * np.float32(factors.unit(kind))
            else:
                factors = None
        classes = estimate(real)
    classes, found = _centred(old, kind, classes)
    bounds = _bounds(np.bincount(found, minlength=LEVELS))
    groups = _groups(found, bounds)
    steps = steps.take(np.argsort(groups, kind="stable"))
    ends = np.cumsum(np.bincount(groups, minlength=len(bounds) + 1))
    parts = [_encode_group(part) for part in np.split(steps, ends[:-1])]
    side = _pack_side(classes, factors) if columns else b""
    return _join(classes.origin, factors, side, bounds, parts)


def decode_difference(old: Integers, stream: memoryview, kind: FloatType, columns: int) -> Integers:
    """Return the numbers that ``stream`` makes of ``old``.

    Raises:
        BlockError: it is damaged, or made to do harm.
    """
    block = _split(stream)
    if columns:
        classes, factors = _unpack_side(block, len(old) // columns, columns)
    elif block.rank or len(block.side):
        raise BlockError("factors for numbers without rows")
    else:
        classes, factors = flat(len(old), block.origin), None
    groups = _groups(levels(old, kind, classes), block.bounds)
    order = np.argsort(groups, kind="stable")
    grouped = np.empty(len(old), kind.integer)
    position = 0
    for part, count in zip(block.parts, np.bincount(groups, minlength=len(block.parts)).tolist(), strict=True):
        _decode_group(part, grouped[position : position + count])
        position += count
    steps = np.empty_like(grouped)
    steps[order] = grouped
    if factors is not None:
        factors.add(steps, old, kind)
    return restore(old, steps)


def encode_numbers(new: Integers) -> bytes:
    """Return the stream of numbers without a base."""
    return _encode_group(ordered(new))


def decode_numbers(stream: memoryview, kind: FloatType, count: int) -> Integers:
    """Return ``count`` numbers of :func:`encode_numbers`; raises :class:`BlockError`."""
    found = np.empty(count, kind.integer)
    _decode_group(stream, found)
    return ordered(found)


def decompress(stream: bytes | memoryview, size: int) -> bytes:
    """Return the ``size`` bytes that a zstd frame holds; raises :class:`BlockError`, before more is allocated."""
    try:
        parameters = zstandard.get_frame_parameters(bytes(stream[:18]))
        if parameters.content_size != size or parameters.window_size > max(size, 1 << 20):
            raise BlockError(f"a zstd frame of {parameters.content_size} bytes instead of {size}")
        plain = zstandard.ZstdDecompressor().decompress(stream, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as e:
        raise BlockError(f"zstd: {e}") from e
    if len(plain) != size:
        raise BlockError(f"{len(plain)} bytes instead of {size}")
    return plain


def _centred(old: Integers, kind: FloatType, classes: Classes) -> tuple[Classes, Bytes]:
    """Choose the origin so that the most frequent ulp of a number that moves is in the middle."""
    sample = old[:: max(1, len(old) // 4096)]
    typical = int(np.median(exponents(sample, kind, UNIT_BITS))) if len(sample) else 0
    middle = sum(MIDDLE for side in (classes.rows, classes.columns) if side.any())
    centred = Classes(classes.rows, classes.columns, LEVELS // 2 + typical - middle)
    return centred, levels(old, kind, centred)


def _bounds(counts: npt.NDArray[np.int64]) -> Bytes:
    """Return the first level of every group but the lowest, ascending: neighbours are joined until a group is large enough."""
    least = max(_GROUP_NUMBERS, int(counts.sum()) // MAX_GROUPS)
    bounds: list[int] = []
    size = 0
    for level, count in enumerate(counts.tolist()):
        if size >= least and len(bounds) < MAX_GROUPS - 1 and count:
            bounds.append(level)
            size = 0
        size += count
    return np.array(bounds, np.uint8)


def _groups(found: Bytes, bounds: Bytes) -> Bytes:
    """Return the group of every number, by its level."""
    table = np.searchsorted(bounds, np.arange(LEVELS), side="right").astype(np.uint8)
    return np.frombuffer(found.tobytes().translate(table.tobytes()), np.uint8)


def _encode_group(numbers: Integers) -> bytes:
    if not numbers.any():
        return b""
    compressor = wrapped.FileCompressor().chunk_compressor(np.ascontiguousarray(numbers), _CONFIG)
    return bytes(compressor.write_meta()) + bytes(compressor.write_page(0))


def _decode_group(stream: memoryview, numbers: Integers) -> None:
    """Fill ``numbers``; no bytes stand for zeros only."""
    if not len(stream):
        numbers[:] = 0
        return
    if stream[0]:  # mode and differences: others than ours can ask for much memory
        raise BlockError("an entropy-coded stream of another kind")
    data = bytes(stream)
    try:
        decompressor, _ = wrapped.FileDecompressor.new(_PCO_HEADER)
        chunk, begin = decompressor.chunk_decompressor(data, f"i{numbers.dtype.itemsize * 8}")
        progress, used = chunk.read_page_into(data[begin:], len(numbers), numbers)
    except BaseException as e:  # a panic of the library is no Exception
        if isinstance(e, (KeyboardInterrupt, SystemExit)):
            raise
        raise BlockError(f"entropy-coded stream: {e}") from e
    if progress.n_processed != len(numbers) or begin + used != len(data):
        raise BlockError("an entropy-coded stream of another length")


def _real_steps(old: Integers, new: Integers, kind: FloatType) -> npt.NDArray[np.float32]:
    """Return how far the numbers have moved; 0 where that is no step of a training (NaN, infinity, arbitrary bits)."""
    with np.errstate(all="ignore"):
        steps = values(new, kind) - values(old, kind)
        steps[~(np.abs(steps) < _NO_STEP)] = 0.0
    return steps


def _pack_side(classes: Classes, factors: Factors | None) -> bytes:
    plain = classes.rows.tobytes() + classes.columns.tobytes()
    if factors is not None:
        plain += factors.rows.T.tobytes() + factors.columns.T.tobytes()
    return zstandard.compress(plain, 9)


def _unpack_side(block: _Block, rows: int, columns: int) -> tuple[Classes, Factors | None]:
    plain = np.frombuffer(decompress(block.side, (rows + columns) * (1 + block.rank)), np.uint8)
    classes = Classes(plain[:rows], plain[rows : rows + columns], block.origin)
    if not block.rank:
        return classes, None
    of_rows, of_columns = np.split(plain[rows + columns :].view(np.int8), [rows * block.rank])
    return classes, Factors(of_rows.reshape(block.rank, -1).T, of_columns.reshape(block.rank, -1).T, block.scale)


@dataclass(frozen=True)
class _Block:
    """The parts of a block's bytes."""

    rank: int
    scale: int
    origin: int
    side: memoryview
    bounds: Bytes
    parts: list[memoryview]


def _join(origin: int, factors: Factors | None, side: bytes, bounds: Bytes, parts: Sequence[bytes]) -> bytes:
    rank, scale = (factors.rank, factors.scale) if factors is not None else (0, 0)
    lengths = b"".join(_LENGTH.pack(len(part)) for part in parts)
    return b"".join([_HEAD.pack(len(parts), rank, scale, origin, len(side)), bounds.tobytes(), lengths, side, *parts])


def _split(stream: memoryview) -> _Block:
    """Take a block apart, every length checked against the stream's."""
    if len(stream) < _HEAD.size:
        raise BlockError("a block's head is cut short")
    count, rank, scale, origin, side_size = _HEAD.unpack_from(stream)
    begin = _HEAD.size + count - 1 + count * _LENGTH.size
    if not 0 < count <= MAX_GROUPS or len(stream) < begin:
        raise BlockError(f"{count} groups in a block of {len(stream)} bytes")
    if rank > MAX_RANK:
        raise BlockError(f"a prediction of rank {rank}, at most {MAX_RANK}")
    bounds = np.frombuffer(stream, np.uint8, count - 1, _HEAD.size)
    lengths = np.frombuffer(stream, "<u4", count, _HEAD.size + count - 1).tolist()
    if begin + side_size + sum(lengths) != len(stream):
        raise BlockError("the lengths of a block's parts do not add up")
    if (np.diff(bounds.astype(np.int16)) <= 0).any():
        raise BlockError("the bounds of a block's groups do not ascend")
    parts, position = [], begin + side_size
    for length in lengths:
        parts.append(stream[position : position + length])
        position += length
    return _Block(rank, scale, origin, stream[begin : begin + side_size], bounds, parts)
