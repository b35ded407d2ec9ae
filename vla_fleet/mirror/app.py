# SPDX-License-Identifier: Apache-2.0
"""The mirror's web application: ``GET <any path>/blobs/sha256/<hex>``, as the origin has it, and ``GET /status``."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from vla_fleet.clock import Clock, SystemClock
from vla_fleet.errors import FleetError, MissingError
from vla_fleet.mirror.cache import Cache, Fill
from vla_fleet.mirror.origin import Origin

_BLOB = re.compile(r"/(?:[^/]+/)*blobs/sha256/([0-9a-f]{64})")
_PART = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")
_TIMEOUT = httpx.Timeout(30.0, connect=5.0, pool=None)


def create_app(origin_url: str, folder: Path, max_bytes: int, clock: Clock | None = None) -> FastAPI:
    """Return a mirror of ``origin_url`` that keeps at most ``max_bytes`` in ``folder``."""
    clock = clock or SystemClock()
    # a redirect to an object store is followed; the authorization goes to no other host
    limits = httpx.Limits(max_connections=32)
    client = httpx.AsyncClient(timeout=_TIMEOUT, limits=limits, trust_env=False, follow_redirects=True)
    origin = Origin(origin_url, client, clock)
    cache = Cache(folder, max_bytes, origin, clock)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield
            await cache.close()

    app = FastAPI(title="vla_fleet mirror", lifespan=lifespan, openapi_url=None)

    @app.exception_handler(FleetError)
    async def refuse(_: Request, error: FleetError) -> JSONResponse:
        return JSONResponse({"error_code": error.code, "message": error.message}, error.status)

    @app.get("/status")
    async def status() -> dict[str, Any]:
        sizes = cache.sizes()
        held = {"blobs": len(sizes), "bytes": sum(sizes.values()), "max_bytes": max_bytes}
        return {"origin": origin_url, **held, "fetched_bytes": origin.fetched_bytes}

    @app.get("/{path:path}", response_model=None)
    async def blob(request: Request) -> Response:
        path = request.url.path
        found = _BLOB.fullmatch(path)
        if found is None:
            raise MissingError("NOT_FOUND", "a mirror has blobs only; ask the origin")
        authorization = request.headers.get("authorization", "")
        size = await origin.permit(path, authorization, is_here=cache.find(found[1]) is not None)
        here = cache.find(found[1]) or cache.fill(found[1], size, path, authorization)
        headers = {"ETag": f'"{found[1]}"', "Accept-Ranges": "bytes"}
        if isinstance(here, Path):
            return FileResponse(here, media_type="application/octet-stream", headers=headers)
        return _growing(request, here, headers)

    return app


def _growing(request: Request, fill: Fill, headers: dict[str, str]) -> Response:
    """Answer with a blob that still arrives, or with one part of it."""
    start, end, status = 0, fill.size, 200
    part = _PART.fullmatch(request.headers.get("range", ""))
    if part and request.headers.get("if-range", headers["ETag"]) == headers["ETag"]:
        start, end = int(part[1]), min(fill.size, int(part[2]) + 1 if part[2] else fill.size)
        if start >= end:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{fill.size}"})
        headers["Content-Range"], status = f"bytes {start}-{end - 1}/{fill.size}", 206
    headers["Content-Length"] = str(end - start)
    return StreamingResponse(fill.read(start, end), status, headers, "application/octet-stream")
