# SPDX-License-Identifier: Apache-2.0
"""The records of an MCAP file from a stranger, one after the other: bounded in memory, and every damage named.

The index at the file's end is not trusted, and not needed: an episode is read as a whole.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, McapRecord, Message, Metadata
from mcap.stream_reader import CRCValidationError, breakup_chunk

from vla_learning.errors import EpisodeError

MAX_FILE_BYTES = 1 << 30
"""Of an episode [bytes]: eight hours of one small camera, minutes of several large ones."""
_MAX_RECORD_BYTES = 32 << 20
"""Of one record, and of a chunk's content: far above what a chunk or a picture takes."""
_MAX_CONTENT_BYTES = 1 << 30
"""Of all chunks' contents together."""
_MAGIC = b"\x89MCAP0\r\n"
_RECORD_HEADER = struct.Struct("<BQ")


def records(path: Path) -> Iterator[Channel | Message | Metadata]:
    """Yield channels, messages and metadata in the file's order; returns only if the file is whole.

    Raises:
        EpisodeError: EPISODE_UNREADABLE, EPISODE_TRUNCATED (it ends too early), EPISODE_FORMAT (it is no MCAP, or damaged) or
            EPISODE_LIMIT (larger than any honest episode).
    """
    try:
        with path.open("rb") as stream:
            yield from _records(stream, path.name)
    except OSError as e:
        raise EpisodeError("EPISODE_UNREADABLE", path, e.strerror or str(e)) from e


def _records(stream: BinaryIO, where: str) -> Iterator[Channel | Message | Metadata]:
    content = 0
    for opcode, data in _bodies(stream, where):
        try:
            found = _parse(opcode, data)
            if isinstance(found, Chunk):
                content += _content_bytes(found, where)
                if content > _MAX_CONTENT_BYTES:
                    raise EpisodeError("EPISODE_LIMIT", where, f"more than {_MAX_CONTENT_BYTES} bytes of messages")
                inner = breakup_chunk(found, validate_crc=True)
            else:
                inner = [found]
        except _DAMAGED as e:
            reason = f"damaged before byte {stream.tell()}: {type(e).__name__} {e}"
            raise EpisodeError("EPISODE_FORMAT", where, " ".join(reason.split())) from e
        for record in inner:
            if isinstance(record, (Channel, Message, Metadata)):
                yield record


def _bodies(stream: BinaryIO, where: str) -> Iterator[tuple[int, bytes]]:
    """Yield opcode and bytes of the records that matter, up to the footer."""
    left = os.fstat(stream.fileno()).st_size
    if left > MAX_FILE_BYTES:
        raise EpisodeError("EPISODE_LIMIT", where, f"{left} bytes; at most {MAX_FILE_BYTES} are read")
    magic = stream.read(len(_MAGIC))
    if magic != _MAGIC:
        raise _truncated(where) if _MAGIC.startswith(magic) else EpisodeError("EPISODE_FORMAT", where, "no MCAP file")
    left -= len(_MAGIC)
    while left >= _RECORD_HEADER.size:
        opcode, length = _RECORD_HEADER.unpack(stream.read(_RECORD_HEADER.size))
        left -= _RECORD_HEADER.size + length
        if left < 0:
            break
        if opcode == Opcode.FOOTER and left >= len(_MAGIC):
            return
        if opcode not in _PARSED:
            stream.seek(length, os.SEEK_CUR)
        elif length > _MAX_RECORD_BYTES:
            raise EpisodeError("EPISODE_LIMIT", where, f"a record of {length} bytes; at most {_MAX_RECORD_BYTES}")
        else:
            yield opcode, stream.read(length)
    raise _truncated(where)


_PARSED: dict[int, type[McapRecord]] = {
    Opcode.CHANNEL: Channel,
    Opcode.MESSAGE: Message,
    Opcode.METADATA: Metadata,
    Opcode.CHUNK: Chunk,
}
_DAMAGED = (McapError, CRCValidationError, struct.error, zstandard.ZstdError, ValueError, OverflowError, MemoryError)


def _parse(opcode: int, data: bytes) -> McapRecord:
    stream = ReadDataStream(io.BytesIO(data))
    if opcode == Opcode.MESSAGE:
        return Message.read(stream, len(data))  # type: ignore[no-any-return]
    kind: Any = _PARSED[opcode]
    record: McapRecord = kind.read(stream)
    return record


def _content_bytes(chunk: Chunk, where: str) -> int:
    """Return how much a chunk holds once it is decompressed; a small chunk may claim, or hide, gigabytes."""
    if chunk.compression not in ("", "zstd"):
        raise EpisodeError("EPISODE_FORMAT", where, f"compression {chunk.compression!r}; write chunks with zstd")
    size = len(chunk.data)
    if chunk.compression == "zstd":
        hidden = zstandard.get_frame_parameters(chunk.data).content_size
        size = max(chunk.uncompressed_size, 0 if hidden == zstandard.CONTENTSIZE_UNKNOWN else hidden)
    if size > _MAX_RECORD_BYTES:
        raise EpisodeError("EPISODE_LIMIT", where, f"a chunk of {size} bytes; at most {_MAX_RECORD_BYTES}")
    return size


def _truncated(where: str) -> EpisodeError:
    reason = "the file ends too early; `mcap recover FILE` saves what is whole"
    return EpisodeError("EPISODE_TRUNCATED", where, reason)
