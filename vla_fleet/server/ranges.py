# SPDX-License-Identifier: Apache-2.0
"""Files to whoever asks for them, from any byte on: from this machine's disk, or through it from an object store."""

from __future__ import annotations

import re

from fastapi import Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from vla_fleet.errors import MissingError
from vla_fleet.storage.blobs import BlobStore

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_TYPE = "application/octet-stream"


async def blob(request: Request, store: BlobStore, sha256: str, missing: MissingError, filename: str = "") -> Response:
    """Answer with a blob, or the part of it that ``Range`` asks for; raise ``missing`` if it is not there."""
    size = await store.size(sha256)
    if size is None:
        raise missing
    headers = {"ETag": f'"{sha256}"'}
    if (path := store.path(sha256)) is not None:
        return FileResponse(path, media_type=_TYPE, headers=headers)
    headers["Accept-Ranges"] = "bytes"
    if filename:
        headers["Content-Disposition"] = f'attachment; filename="{filename}"'
    begin, end, status = 0, size, 200
    asked = request.headers.get("range", "") if _same(request, headers["ETag"]) else ""
    if (found := _RANGE.fullmatch(asked)) and asked != "bytes=-":
        begin, end, status = *_part(found[1], found[2], size), 206
        if begin >= end:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - begin)
    return StreamingResponse(store.read(sha256, begin, end), status, headers, _TYPE)


def _same(request: Request, etag: str) -> bool:
    """Whether the part that is asked for is of the file that is here."""
    return request.headers.get("if-range", etag) == etag


def _part(first: str, last: str, size: int) -> tuple[int, int]:
    """Return where a part begins, and where it has ended."""
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(int(last) + 1, size) if last else size
