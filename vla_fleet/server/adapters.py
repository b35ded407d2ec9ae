# SPDX-License-Identifier: Apache-2.0
"""Endpoints for adapters that robots trained: robots upload them, people list and fetch them to merge them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from vla_fleet import protocol
from vla_fleet.adapters.store import MAX_ADAPTER_BYTES
from vla_fleet.episodes.store import Standing
from vla_fleet.errors import MissingError
from vla_fleet.server import ranges
from vla_fleet.server.episodes import Robot
from vla_fleet.server.keys import Viewer
from vla_fleet.server.rooms import rooms_of

router = APIRouter(tags=["adapters"])


class AdapterInfo(BaseModel):
    """An adapter without its matrices."""

    number: int
    sha256: str
    size_bytes: int
    robot: str
    name: str
    version: str
    digest: str
    base_version: str
    base_digest: str
    examples: int
    received_s: float


@router.get("/v1/robot/adapters/{sha256}")
async def show_adapter_upload(request: Request, sha256: protocol.Digest, robot: Robot) -> Standing:
    """Say how much of an adapter has arrived."""
    return await rooms_of(request).adapters.standing(robot, sha256)


@router.put("/v1/robot/adapters/{sha256}")
async def upload_adapter(
    request: Request,
    sha256: protocol.Digest,
    robot: Robot,
    offset: Annotated[int, Query(ge=0, lt=2**63)],
    total_bytes: Annotated[int, Query(ge=1, lt=2**63)],
) -> Standing:
    """Take in an adapter's archive, or a piece of it from byte ``offset`` on. What arrived stays, whatever ends the request."""
    store = rooms_of(request).adapters
    if total_bytes > MAX_ADAPTER_BYTES:
        raise HTTPException(413, f"an adapter has at most {MAX_ADAPTER_BYTES} bytes")
    try:
        return await store.receive(robot, sha256, offset, total_bytes, request.stream())
    except ClientDisconnect:
        return await store.standing(robot, sha256)  # nobody reads it


@router.get("/v1/adapters")
async def list_adapters(
    request: Request,
    _: Viewer,
    name: protocol.Word = "",
    base_version: protocol.Word = "",
    before: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[AdapterInfo]:
    """List adapters that robots uploaded, the newest first: those before number ``before``."""
    rows = await rooms_of(request).adapters.list(name, base_version, before, limit)
    return [AdapterInfo.model_validate(row, from_attributes=True) for row in rows]


@router.get("/v1/adapters/{sha256}/file", response_class=FileResponse)
async def get_adapter(request: Request, sha256: protocol.Digest, _: Viewer) -> Response:
    """Give an adapter's archive, from any byte on (``Range``)."""
    files = rooms_of(request).adapters.files
    missing = MissingError("ADAPTER_NOT_FOUND", f"no adapter {sha256}; see `vla-fleet adapters list`")
    if files.objects is not None:
        return await ranges.blob(request, files.objects, sha256, missing, f"{sha256}.tar")
    path = files.path(sha256)
    if not path.is_file():
        raise missing
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)
