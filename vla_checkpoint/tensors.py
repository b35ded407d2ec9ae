# SPDX-License-Identifier: Apache-2.0
"""Small tensors as numpy arrays, read at the offsets of a header that was checked first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vla_checkpoint.files import PathLike, open_regular, read_exactly
from vla_checkpoint.header import TensorInfo

_NUMPY = {
    "BOOL": "?", "U8": "<u1", "I8": "<i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8",
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip


def numpy_dtype(dtype: str) -> str | None:
    """Return numpy's name of a safetensors dtype; ``None`` where numpy has no such type (BF16, F8, F6, F4)."""
    return _NUMPY.get(dtype)


def read_array(path: PathLike, info: TensorInfo) -> npt.NDArray[np.generic]:
    """Read one tensor into memory; BF16 comes as float32 (exact).

    Raises:
        FileError: it cannot be read.
        TypeError: numpy has no type for it.
    """
    data = bytearray(info.nbytes)
    with open_regular(path) as file:
        file.seek(info.start)
        read_exactly(file, path, memoryview(data))
    return from_bytes(data, info)


def from_bytes(data: bytes | bytearray, info: TensorInfo) -> npt.NDArray[np.generic]:
    """Return a tensor's bytes as an array; as :func:`read_array`."""
    if info.dtype == "BF16":
        upper = np.frombuffer(data, dtype="<u2").astype("<u4") << 16
        return upper.view("<f4").reshape(info.shape)
    name = numpy_dtype(info.dtype)
    if name is None:
        raise TypeError(f"numpy has no type for {info.dtype}")
    return np.frombuffer(data, dtype=name).reshape(info.shape)


def to_bytes(array: npt.NDArray[np.float32], dtype: str) -> bytes:
    """Return numbers as the bytes of F32, F16 or BF16, rounded to nearest even."""
    if dtype != "BF16":
        return array.astype("<f2" if dtype == "F16" else "<f4").tobytes()
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    rounded: bytes = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return rounded
