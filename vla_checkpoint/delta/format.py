# SPDX-License-Identifier: Apache-2.0
"""The file: a header, a table of records, and their streams. docs/delta_format.md describes it.

Whatever a file says of itself is checked here before anything is allocated for it, and before a base is looked at.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import zstandard

from vla_checkpoint import limits
from vla_checkpoint.delta.blocks import BlockError, decompress
from vla_checkpoint.delta.numbers import FLOAT_TYPES_BY_CODE
from vla_checkpoint.digest import is_sha256
from vla_checkpoint.errors import DeltaError, JsonError
from vla_checkpoint.files import PathLike, file_size, open_regular, read_exactly
from vla_checkpoint.strict_json import is_int, parse_json

MAGIC = b"VLADELT1"
BLOCK_BYTES = 4 << 20
"""Bytes of the target that one coded record makes, at most."""
MAX_RECORDS = 1 << 18
MAX_HEADER_BYTES = 1 << 16
MAX_BASES = 256
RECORD = np.dtype([
    ("codec", "u1"), ("dtype", "u1"), ("base", "<u2"), ("columns", "<u4"), ("size", "<u8"), ("offset", "<u8"), ("length", "<u8"),
])  # fmt: skip
_PREFIX = len(MAGIC) + 8


class Codec(IntEnum):
    """How a record's part of the target is made."""

    COPY = 0
    """It is in a base, as it is."""
    RAW = 1
    ZSTD = 2
    DIFFERENCE = 3
    """It is as many numbers of a base, changed."""
    NUMBERS = 4
    """It is numbers, without a base."""


@dataclass(frozen=True)
class FileRef:
    """A file by its content."""

    sha256: str
    size: int
    """[bytes]"""


@dataclass(frozen=True)
class Delta:
    """What a delta file says of itself, checked."""

    target: FileRef
    bases: tuple[FileRef, ...]
    """The files that records copy from, by their index."""
    records: npt.NDArray[Any]
    """``[R]`` of ``RECORD``, in the target's order."""
    streams: int
    """Offset of the first record's stream in the file."""
    size: int
    """Size of the file [bytes]."""


def read_delta(path: PathLike) -> Delta:
    """Read and check all of a delta but its streams.

    Raises:
        FileError: it cannot be read.
        DeltaError: DELTA_FORMAT.
    """
    with open_regular(path) as file:
        size = file_size(file)
        prefix = bytearray(min(size, _PREFIX))
        read_exactly(file, path, memoryview(prefix))
        if size < _PREFIX or not prefix.startswith(MAGIC):
            _refuse(path, "not a tensor delta of this version")
        length = int.from_bytes(prefix[len(MAGIC) :], "little")
        if length > min(MAX_HEADER_BYTES, size - _PREFIX):
            _refuse(path, f"header of {length} bytes in a file of {size}")
        head = bytearray(length)
        read_exactly(file, path, memoryview(head))
        target, bases, count, packed = _parse_head(bytes(head), path)
        streams = _PREFIX + length + packed
        if streams > size:
            _refuse(path, f"ends within its table of {packed} bytes")
        table = bytearray(packed)
        read_exactly(file, path, memoryview(table))
    try:
        records = np.frombuffer(decompress(bytes(table), count * RECORD.itemsize), RECORD)
    except BlockError as e:
        raise DeltaError("DELTA_FORMAT", path, f"table: {e}") from e
    delta = Delta(target, bases, records, streams, size)
    _check_records(delta, path)
    return delta


def write_delta(
    path: Path, target: FileRef, bases: tuple[FileRef, ...], records: npt.NDArray[Any], streams: Path
) -> None:
    """Write a delta whose streams are in another file; raises ``OSError``."""
    table = zstandard.compress(records.tobytes(), 9)
    document = {
        "target": asdict(target),
        "bases": [asdict(base) for base in bases],
        "records": len(records),
        "table_bytes": len(table),
    }
    head = json.dumps(document, separators=(",", ":")).encode()
    with path.open("wb") as out, streams.open("rb") as source:
        out.write(MAGIC + len(head).to_bytes(8, "little") + head + table)
        while data := source.read(BLOCK_BYTES):
            out.write(data)


def _refuse(path: PathLike, reason: str) -> NoReturn:
    raise DeltaError("DELTA_FORMAT", path, reason)


def _parse_head(data: bytes, path: PathLike) -> tuple[FileRef, tuple[FileRef, ...], int, int]:
    try:
        document = parse_json(data, path)
    except JsonError as e:
        raise DeltaError("DELTA_FORMAT", path, f"header: {e.reason}") from e
    if not isinstance(document, dict) or document.keys() != {"target", "bases", "records", "table_bytes"}:
        _refuse(path, "header must have exactly target, bases, records and table_bytes")
    bases, count, packed = document["bases"], document["records"], document["table_bytes"]
    if not isinstance(bases, list) or len(bases) > MAX_BASES:
        _refuse(path, f"bases must be a list of up to {MAX_BASES} files")
    if not is_int(count) or not 0 <= count <= MAX_RECORDS:
        _refuse(path, f"records must be an integer of 0 to {MAX_RECORDS}")
    if not is_int(packed) or not 0 <= packed <= 1024 + 2 * MAX_RECORDS * RECORD.itemsize:
        _refuse(path, "table_bytes is out of range")
    return _file_ref(document["target"], path), tuple(_file_ref(base, path) for base in bases), count, packed


def _file_ref(value: Any, path: PathLike) -> FileRef:
    if not isinstance(value, dict) or value.keys() != {"sha256", "size"}:
        _refuse(path, "a file must have exactly sha256 and size")
    sha256, size = value["sha256"], value["size"]
    if not is_sha256(sha256):
        _refuse(path, "sha256 must be 64 lower-case hexadecimal digits")
    if not is_int(size) or not 0 <= size <= limits.FILE_BYTES:
        _refuse(path, "size of a file is out of range")
    return FileRef(sha256, size)


def _check_records(delta: Delta, path: PathLike) -> None:
    """Check every field of every record, so that the decoder can rely on them."""
    columns: dict[str, npt.NDArray[Any]] = {name: delta.records[name].astype(np.int64) for name in RECORD.names or ()}
    codec, dtype, base, size = columns["codec"], columns["dtype"], columns["base"], columns["size"]
    offset, length, width = columns["offset"], columns["length"], columns["columns"]

    def must(condition: npt.NDArray[np.bool_], reason: str) -> None:
        if not condition.all():
            _refuse(path, f"record {int(np.argmin(condition))}: {reason}")

    for values in (size, offset, length):  # as int64: what is larger than 2**63 is negative
        must((values >= 0) & (values <= limits.FILE_BYTES), "a size, offset or length is out of range")
    copies, numbers = codec == Codec.COPY, np.isin(codec, (Codec.DIFFERENCE, Codec.NUMBERS))
    based = copies | (codec == Codec.DIFFERENCE)
    must(codec <= max(Codec), "unknown codec")
    must(size > 0, "makes nothing")
    must(copies | (size <= BLOCK_BYTES), f"makes more than {BLOCK_BYTES} bytes")
    must(np.where(copies, length == 0, length <= size), "a stream longer than what it makes")
    must((codec != Codec.RAW) | (length == size), "a raw stream of another length")
    must(np.where(numbers, np.isin(dtype, list(FLOAT_TYPES_BY_CODE)), dtype == 0), "unknown dtype")
    widths = np.array([FLOAT_TYPES_BY_CODE[i].nbytes if i in FLOAT_TYPES_BY_CODE else 1 for i in range(256)])[dtype]
    must(size % widths == 0, "makes a part of a number")
    must((codec == Codec.DIFFERENCE) | (width == 0), "has columns")
    must((size // widths) % np.maximum(width, 1) == 0, "columns do not divide its numbers")
    sizes = np.array([*(ref.size for ref in delta.bases), 0], np.int64)
    must(np.where(based, base < len(delta.bases), (base == 0) & (offset == 0)), "names no base of this delta")
    must(~based | (offset + size <= sizes[np.minimum(base, len(delta.bases))]), "reaches behind the end of its base")
    if int(size.sum()) != delta.target.size:
        _refuse(path, f"records make {int(size.sum())} bytes, the target has {delta.target.size}")
    if delta.streams + int(length.sum()) != delta.size:
        _refuse(path, f"streams end at {delta.streams + int(length.sum())}, the file at {delta.size}")
