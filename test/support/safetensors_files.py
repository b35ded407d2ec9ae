# SPDX-License-Identifier: Apache-2.0
"""Safetensors files byte by byte, for tests that need them wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_raw(path: Path, header: bytes | dict[str, Any], data: bytes, *, length: int | None = None) -> Path:
    """Write length prefix, header and data as given; ``length`` overrides the prefix."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(
    dtype: str = "U8", shape: list[Any] | None = None, offsets: list[Any] | None = None, **more: Any
) -> dict[str, Any]:
    """Return one tensor's header entry: four bytes by default."""
    return {"dtype": dtype, "shape": [4] if shape is None else shape, "data_offsets": offsets or [0, 4], **more}
