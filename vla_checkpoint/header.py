# SPDX-License-Identifier: Apache-2.0
"""A strict reader for safetensors headers, to be run before anything else opens the file.

The format (https://github.com/huggingface/safetensors): 8 bytes little-endian header length N, N bytes of JSON
``{name: {"dtype", "shape", "data_offsets": [start, end]}, "__metadata__": {str: str}}`` padded with spaces, the tensors' bytes.
The library's own readers accept duplicate keys, unknown fields and more; here a file is either described exactly or refused:
tensors, sorted by offset, follow each other without gap or overlap from the first data byte to the last byte of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from vla_checkpoint import limits
from vla_checkpoint.errors import HeaderError, JsonError
from vla_checkpoint.files import PathLike, file_size, open_regular, read_exactly
from vla_checkpoint.strict_json import is_int, parse_json

# What safetensors 0.8 defines. Elements below a byte (F4, F6) are packed: a tensor must still be whole bytes.
DTYPE_BITS: Mapping[str, int] = MappingProxyType({
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
})  # fmt: skip

LENGTH_BYTES = 8
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})
_METADATA_KEY = "__metadata__"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file."""

    name: str
    dtype: str
    """safetensors name, a key of :data:`DTYPE_BITS`."""
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte from the beginning of the file (not of the data section)."""
    end: int
    """Offset behind its last byte, from the beginning of the file."""

    @property
    def nbytes(self) -> int:
        """Size of its data [bytes]."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds."""

    tensors: Mapping[str, TensorInfo]
    """By name, in the order of their bytes in the file."""
    metadata: Mapping[str, str]
    data_start: int
    """Offset of the first data byte from the beginning of the file (8 + header length)."""
    file_size: int
    """Size of the file [bytes]; equals the end of the last tensor."""

    @property
    def total_size(self) -> int:
        """Bytes of all tensors together (``metadata.total_size`` of a shard index counts these)."""
        return self.file_size - self.data_start


def read_header(path: PathLike, *, size: int | None = None) -> Header:
    """Read and check the header of a safetensors file; reads no tensor data.

    Args:
        path: the file.
        size: what it is going to have, if it is not complete yet [bytes].

    Raises:
        FileError: the file cannot be read.
        HeaderError: the header is malformed, or does not cover the file exactly.
    """
    with open_regular(path) as file:
        size = file_size(file) if size is None else size
        if size < LENGTH_BYTES:
            raise HeaderError("HEADER_FILE_SIZE", path, f"{size} bytes are too few for a safetensors file")
        prefix = bytearray(LENGTH_BYTES)
        read_exactly(file, path, memoryview(prefix))
        length = int.from_bytes(prefix, "little")
        if length > limits.HEADER_BYTES:
            raise HeaderError("HEADER_LIMIT", path, f"header of {length} bytes, at most {limits.HEADER_BYTES} allowed")
        if length > size - LENGTH_BYTES:
            raise HeaderError("HEADER_FILE_SIZE", path, f"header of {length} bytes in a file of {size}")
        data = bytearray(length)
        read_exactly(file, path, memoryview(data))
    return parse_header(bytes(data), path, file_size=size)


def parse_header(data: bytes, path: PathLike, *, file_size: int) -> Header:
    """Check header bytes (without the length prefix) of a file of ``file_size`` bytes; ``path`` is for messages only.

    Raises:
        HeaderError: see :func:`read_header`.
    """
    document = _parse_json(data, path)
    metadata = _check_metadata(document.pop(_METADATA_KEY, {}), path)
    if len(document) > limits.TENSORS:
        raise HeaderError("HEADER_LIMIT", path, f"{len(document)} tensors, at most {limits.TENSORS} allowed")
    data_start = LENGTH_BYTES + len(data)
    infos = [_check_tensor(name, entry, data_start, path) for name, entry in document.items()]
    infos.sort(key=lambda info: (info.start, info.end))
    position = data_start
    for info in infos:
        if info.start != position:
            kind = "overlap the tensor before it" if info.start < position else "leave a gap before it"
            raise HeaderError("HEADER_FORMAT", path, f"tensor {info.name!r}: data_offsets {kind}")
        position = info.end
    if position != file_size:
        kind = "is cut short" if position > file_size else "has trailing bytes"
        raise HeaderError("HEADER_FILE_SIZE", path, f"file of {file_size} bytes {kind}: tensors end at {position}")
    return Header(MappingProxyType({info.name: info for info in infos}), metadata, data_start, file_size)


def _parse_json(data: bytes, path: PathLike) -> dict[str, Any]:
    if not data.startswith(b"{"):
        raise HeaderError("HEADER_FORMAT", path, "header does not begin with '{'")
    if not data.rstrip(b" ").endswith(b"}"):
        raise HeaderError("HEADER_FORMAT", path, "header does not end with '}' and spaces")
    try:
        document = parse_json(data, path)
    except JsonError as e:
        raise HeaderError("HEADER_FORMAT", path, f"header: {e.reason}") from e
    assert isinstance(document, dict)  # it begins with '{'
    return document


def _check_metadata(value: Any, path: PathLike) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise HeaderError("HEADER_FORMAT", path, "__metadata__ must map strings to strings")
    if len(value) > limits.METADATA_ENTRIES:
        raise HeaderError("HEADER_FORMAT", path, f"more than {limits.METADATA_ENTRIES} entries in __metadata__")
    return MappingProxyType(value)


def _check_tensor(name: str, entry: Any, data_start: int, path: PathLike) -> TensorInfo:
    if not 0 < len(name) <= limits.NAME_CHARS or not name.isprintable():
        raise HeaderError("HEADER_FORMAT", path, f"tensor name {name[:80]!r} is empty, too long or not printable")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise HeaderError("HEADER_FORMAT", path, f"tensor {name!r} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderError("HEADER_FORMAT", path, f"tensor {name!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not _is_sizes(shape) or len(shape) > limits.DIMENSIONS:
        raise HeaderError(
            "HEADER_FORMAT", path, f"tensor {name!r}: shape must be up to {limits.DIMENSIONS} integers >= 0"
        )
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError("HEADER_FORMAT", path, f"tensor {name!r}: data_offsets must be two ordered integers >= 0")
    if math.prod(n for n in shape if n) >= 1 << 60:  # [0, 2**62, 2**62] is empty here and overflows elsewhere
        raise HeaderError("HEADER_FORMAT", path, f"tensor {name!r}: shape is too large")
    bits = math.prod(shape) * DTYPE_BITS[dtype]  # Python integers do not overflow
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        reason = f"tensor {name!r}: shape {shape} of {dtype} does not fill its {offsets[1] - offsets[0]} bytes exactly"
        raise HeaderError("HEADER_FORMAT", path, reason)
    return TensorInfo(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(is_int(item) and 0 <= item < 1 << 63 for item in value)
