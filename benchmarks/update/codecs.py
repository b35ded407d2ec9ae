# SPDX-License-Identifier: Apache-2.0
"""Other ways of sending a checkpoint to somebody who has the last one: each makes what is sent, and the file of it again."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from vla_checkpoint.delta import apply_delta, make_delta

Data = bytes
Encode = Callable[[Data, Data], Data]
"""Takes the old and the new file."""
Decode = Callable[[Data, Data], Data]
"""Takes the old file and what was sent."""
_WINDOW_LOG = 27
_LEAST, _MOST = 16 << 10, 256 << 10


def zstd_whole(old: Data, new: Data) -> Data:
    """The whole file by zstd."""
    return zstandard.compress(new, 3)


def unzstd_whole(old: Data, sent: Data) -> Data:
    """Inverse of :func:`zstd_whole`."""
    return zstandard.decompress(sent)


def _patch(level: int) -> tuple[Encode, Decode]:
    """``zstd --patch-from``: the old file as a raw dictionary, a window over both, long-distance matching."""

    def encode(old: Data, new: Data) -> Data:
        parameters = zstandard.ZstdCompressionParameters.from_level(level, window_log=_WINDOW_LOG, enable_ldm=True)
        dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(new)

    def decode(old: Data, sent: Data) -> Data:
        dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        return zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << _WINDOW_LOG).decompress(sent)

    return encode, decode


def _planes(width: int, *, xor: bool) -> tuple[Encode, Decode]:
    """Bitwise (as ZipNN's delta) or integer differences, bytes of one significance together, zstd-3."""
    kind = np.dtype(f"<u{width}")

    def encode(old: Data, new: Data) -> Data:
        one, other = _same(old, len(new), kind), np.frombuffer(new, np.uint8)
        whole = np.zeros(-len(other) % width, np.uint8)
        numbers = np.concatenate([other, whole]).view(kind)
        if xor:
            steps = numbers ^ one
        else:
            signed = (numbers - one).view(f"<i{width}")
            steps = ((signed << 1) ^ (signed >> (8 * width - 1))).view(kind)
        planes = np.ascontiguousarray(steps.view(np.uint8).reshape(-1, width).T)
        return len(new).to_bytes(8, "little") + zstandard.compress(planes.tobytes(), 3)

    def decode(old: Data, sent: Data) -> Data:
        size = int.from_bytes(sent[:8], "little")
        one = _same(old, size, kind)
        planes = np.frombuffer(zstandard.decompress(sent[8:]), np.uint8).reshape(width, -1)
        steps = np.ascontiguousarray(planes.T).view(kind).ravel()
        numbers = steps ^ one if xor else one + ((steps >> kind.type(1)) ^ (kind.type(0) - (steps & kind.type(1))))
        return bytes(numbers.tobytes()[:size])

    return encode, decode


def _same(old: Data, size: int, kind: np.dtype[Any]) -> Any:
    """Return the old file cut or filled to a size, as numbers."""
    padded = size + -size % kind.itemsize
    return np.frombuffer(old[:padded].ljust(padded, b"\0"), kind)


def _pco(width: int) -> tuple[Encode, Decode]:
    """Integer differences of the bits, by pcodec as it comes."""
    from pcodec import ChunkConfig, standalone

    kind = np.dtype(f"<i{width}")

    def encode(old: Data, new: Data) -> Data:
        numbers = np.frombuffer(new.ljust(len(new) + -len(new) % width, b"\0"), kind)
        return len(new).to_bytes(8, "little") + bytes(
            standalone.simple_compress(numbers - _same(old, len(new), kind), ChunkConfig())
        )

    def decode(old: Data, sent: Data) -> Data:
        size = int.from_bytes(sent[:8], "little")
        steps: Any = standalone.simple_decompress(sent[8:])
        return bytes((steps + _same(old, size, kind)).tobytes()[:size])

    return encode, decode


def _cuts(data: Data) -> list[int]:
    """Return the ends of content-defined chunks (a gear hash over the last 16 bytes, 64 KB on average)."""
    gear = np.random.default_rng(1).integers(0, 1 << 32, 256, np.uint32)
    rolling = gear[np.frombuffer(data, np.uint8)]
    for age in (1, 2, 4, 8):  # then of 2, 4, 8, 16 bytes
        rolling[age:] += rolling[:-age] << np.uint32(age)
    ends, begin = [], 0
    for cut in (np.flatnonzero((rolling >> np.uint32(16)) == 0) + 1).tolist():
        while cut - begin > _MOST:
            begin += _MOST
            ends.append(begin)
        if cut - begin >= _LEAST:
            ends.append(cut)
            begin = cut
    while len(data) - begin > _MOST:
        begin += _MOST
        ends.append(begin)
    return [*ends, len(data)] if begin < len(data) else ends


def chunks(old: Data, new: Data) -> Data:
    """Chunks that the old file does not have, zstd-3 each, and 32 bytes for each of the others."""
    parts = []
    new_chunks, there = _named(new), {digest for digest, _ in _named(old)}
    for digest, chunk in new_chunks:
        packed = b"" if digest in there else zstandard.compress(chunk, 3)
        parts.append(digest + len(packed).to_bytes(4, "little") + packed)
    return b"".join(parts)


def unchunks(old: Data, sent: Data) -> Data:
    """Inverse of :func:`chunks`."""
    there, made, position = dict(_named(old)), [], 0
    while position < len(sent):
        digest, size = sent[position : position + 32], int.from_bytes(sent[position + 32 : position + 36], "little")
        position += 36 + size
        made.append(zstandard.decompress(sent[position - size : position]) if size else there[digest])
    return b"".join(made)


@functools.lru_cache(maxsize=1)
def _named(data: Data) -> list[tuple[bytes, Data]]:
    found, begin = [], 0
    for end in _cuts(data):
        found.append((hashlib.sha256(data[begin:end]).digest(), data[begin:end]))
        begin = end
    return found


def _bsdiff() -> tuple[Encode, Decode]:
    import bsdiff4

    return (lambda old, new: bytes(bsdiff4.diff(old, new))), (lambda old, sent: bytes(bsdiff4.patch(old, sent)))


def _xdelta() -> tuple[Encode, Decode]:
    """xdelta3 through files, which is how its binding has it."""
    import pyxdelta

    def through_files(run: Callable[..., bool], one: Data, other: Data) -> Data:
        with tempfile.TemporaryDirectory() as name:
            paths = [Path(name, file) for file in ("one", "other", "made")]
            paths[0].write_bytes(one)
            paths[1].write_bytes(other)
            if not run(*map(str, paths)):
                raise RuntimeError("xdelta3 failed")
            return paths[2].read_bytes()

    return functools.partial(through_files, pyxdelta.run), functools.partial(through_files, pyxdelta.decode)


def _zipnn(dtype: str) -> tuple[Encode, Decode]:
    """ZipNN's delta mode as it comes: XOR against the old file, bytes in groups, an entropy coder that it chooses."""
    import zipnn

    def coder() -> Any:
        return zipnn.ZipNN(bytearray_dtype=dtype, delta_compressed_type="byte")

    def encode(old: Data, new: Data) -> Data:
        same = old[: len(new)].ljust(len(new), b"\0")
        return len(new).to_bytes(8, "little") + bytes(coder().compress(new, delta_second_data=same))

    def decode(old: Data, sent: Data) -> Data:
        size = int.from_bytes(sent[:8], "little")
        return bytes(coder().decompress(sent[8:], delta_second_data=old[:size].ljust(size, b"\0")))

    return encode, decode


PEERS: dict[str, tuple[str, Callable[[str], tuple[Encode, Decode]]]] = {
    "bsdiff4": ("bsdiff4", lambda dtype: _bsdiff()),
    "xdelta3": ("pyxdelta", lambda dtype: _xdelta()),
    "ZipNN, delta mode": ("zipnn", lambda dtype: _zipnn({"bf16": "bfloat16", "fp32": "float32"}[dtype])),
}
"""Name → the package that has it, and what makes the two functions for a dtype."""
WIDTHS = {"bf16": 2, "fp32": 4}


def ways(dtype: str) -> dict[str, tuple[Encode, Decode]]:
    """Return the ways for numbers of a dtype, by name, all but ours and what is not installed."""
    width = WIDTHS[dtype]
    found = {
        "zstd -3, whole file": (zstd_whole, unzstd_whole),
        "64 KB content-defined chunks": (chunks, unchunks),
        "zstd -3 --patch-from": _patch(3),
        "zstd -19 --patch-from": _patch(19),
        "XOR, byte planes, zstd -3": _planes(width, xor=True),
        "difference, byte planes, zstd -3": _planes(width, xor=False),
        "difference, pcodec": _pco(width),
    }
    peers = {name: make(dtype) for name, (package, make) in PEERS.items() if importlib.util.find_spec(package)}
    return {**found, **peers}


def ours(base: Path, target: Path, delta: Path) -> Callable[[], Data]:
    """Make our delta; return what applies it."""
    make_delta([base], target, delta)

    def apply() -> Data:
        made = bytearray()
        apply_delta(delta, [base], made.extend)
        return bytes(made)

    return apply
