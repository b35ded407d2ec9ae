# SPDX-License-Identifier: Apache-2.0
"""Endpoints for adapters that robots trained: people list and fetch them to merge them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel

from vla_fleet import protocol
from vla_fleet.errors import MissingError
from vla_fleet.server.keys import Viewer
from vla_fleet.server.rooms import rooms_of
from vla_fleet.server.uploads import uploaded_file

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
    missing = MissingError("ADAPTER_NOT_FOUND", f"no adapter {sha256}; see `vla-fleet adapters list`")
    return await uploaded_file(request, rooms_of(request).adapters.files, sha256, missing)
