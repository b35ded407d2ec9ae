# SPDX-License-Identifier: Apache-2.0
"""Endpoints through which robots upload episodes and adapters, and the way back for people."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import FileResponse, Response
from starlette.requests import ClientDisconnect

from vla_fleet import protocol
from vla_fleet.errors import MissingError
from vla_fleet.server import ranges
from vla_fleet.server.keys import bearer
from vla_fleet.server.limits import refuse
from vla_fleet.server.rooms import rooms_of
from vla_fleet.uploads.files import UploadFiles
from vla_fleet.uploads.store import MAX_UPLOAD_BYTES, Standing

router = APIRouter(tags=["uploads"])
Kind = Literal["episodes", "adapters"]


async def _robot(request: Request) -> str:
    """Return which robot sent a request."""
    rooms = rooms_of(request)
    robot = await rooms.directory.authenticate(bearer(request.headers.get("authorization", "")))
    request.state.who = robot  # for the request log
    refuse(f"requests of {robot}", rooms.robot_messages.take(robot))
    return robot


Robot = Annotated[str, Depends(_robot)]


@router.get("/v1/robot/{kind}/{sha256}")
async def show_upload(request: Request, kind: Kind, sha256: protocol.Digest, robot: Robot) -> Standing:
    """Say how much of a file has arrived."""
    return await rooms_of(request).uploads[kind].standing(robot, sha256)


@router.put("/v1/robot/{kind}/{sha256}")
async def upload(
    request: Request,
    kind: Kind,
    sha256: protocol.Digest,
    robot: Robot,
    offset: Annotated[int, Query(ge=0, lt=2**63)],
    total_bytes: Annotated[int, Query(ge=1, lt=2**63)],
) -> Standing:
    """Take in a file, or a piece of it from byte ``offset`` on. What arrived stays, whatever ends the request."""
    store = rooms_of(request).uploads[kind]
    if total_bytes > MAX_UPLOAD_BYTES:
        raise HTTPException(413, f"a file has at most {MAX_UPLOAD_BYTES} bytes")
    try:
        return await store.receive(robot, sha256, offset, total_bytes, request.stream())
    except ClientDisconnect:
        return await store.standing(robot, sha256)  # nobody reads it


async def uploaded_file(request: Request, files: UploadFiles, sha256: str, missing: MissingError) -> Response:
    """Answer with a file that robots sent, from any byte on (``Range``); raise ``missing`` if it is not there."""
    if files.objects is not None:
        return await ranges.blob(request, files.objects, sha256, missing, sha256 + files.suffix)
    path = files.path(sha256)
    if not path.is_file():
        raise missing
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)
