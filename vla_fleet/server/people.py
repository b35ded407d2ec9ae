# SPDX-License-Identifier: Apache-2.0
"""Endpoints for keys, the log, and whoever watches the server."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel
from sqlalchemy import select, text

from vla_fleet.protocol import Name
from vla_fleet.server.keys import Admin, Role, Viewer
from vla_fleet.server.metrics import CONTENT_TYPE
from vla_fleet.server.rooms import rooms_of
from vla_fleet.storage.tables import LogRow

router = APIRouter(tags=["people"])


class KeyRequest(BaseModel):
    """Whose key is made."""

    name: Name
    role: Role


class Key(BaseModel):
    """A key, shown once."""

    key: str


class LogLine(BaseModel):
    """Who did what."""

    time_s: float
    who: str
    action: str
    subject: str
    detail: dict[str, Any]


@router.post("/v1/keys", status_code=201)
async def make_key(request: Request, body: KeyRequest, person: Admin) -> Key:
    """Make an API key."""
    return Key(key=await rooms_of(request).keys.make(body.name, body.role, person.name))


class KeyInfo(BaseModel):
    """A key without its secret."""

    name: str
    role: Role
    created_s: float
    created_by: str
    revoked_s: float | None


@router.get("/v1/keys")
async def list_keys(request: Request, _: Admin) -> list[KeyInfo]:
    """List the API keys, also revoked ones."""
    return [KeyInfo.model_validate(row, from_attributes=True) for row in await rooms_of(request).keys.all()]


@router.delete("/v1/keys/{name}", status_code=204)
async def revoke_key(request: Request, name: Name, person: Admin) -> None:
    """End an API key."""
    await rooms_of(request).keys.revoke(name, person.name)


@router.get("/v1/log")
async def show_log(request: Request, _: Viewer, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[LogLine]:
    """Show who did what, newest first."""
    async with rooms_of(request).database.begin() as session:
        rows = await session.scalars(select(LogRow).order_by(LogRow.id.desc()).limit(limit))
        return [LogLine.model_validate(row, from_attributes=True) for row in rows]


@router.get("/healthz")
async def healthy() -> dict[str, str]:
    """Say that the process lives."""
    return {"status": "ok"}


@router.get("/readyz")
async def ready(request: Request) -> dict[str, str]:
    """Say that the database answers."""
    async with rooms_of(request).database.begin() as session:
        await session.execute(text("SELECT 1"))
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request, _: Viewer) -> Response:
    """Give Prometheus what it scrapes."""
    rooms = rooms_of(request)
    return Response(await rooms.metrics.text(rooms), media_type=CONTENT_TYPE)
