# SPDX-License-Identifier: Apache-2.0
"""Endpoints of the registry, and the files that robots fetch."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel

from vla_fleet.errors import InputError, MissingError
from vla_fleet.protocol import Name
from vla_fleet.registry.registry import Version
from vla_fleet.server.keys import Publisher, Viewer
from vla_fleet.server.rooms import Rooms

router = APIRouter(tags=["models"])
Hex = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


class NewVersion(BaseModel):
    """A version to publish; its blobs are uploaded before."""

    manifest: str
    """The bytes of manifest.json as text: canonical JSON."""


class AliasTarget(BaseModel):
    """Where an alias points."""

    version: str


def _rooms(request: Request) -> Rooms:
    rooms: Rooms = request.app.state.rooms
    return rooms


@router.head("/v1/blobs/{sha256}")
async def has_blob(request: Request, sha256: Hex, _: Viewer) -> Response:
    """Say whether a blob has been uploaded."""
    size = await _rooms(request).blobs.size(sha256)
    if size is None:
        raise MissingError("BLOB_MISSING", f"blob {sha256} has not been uploaded")
    return Response(headers={"Content-Length": str(size)})


@router.put("/v1/blobs/{sha256}", status_code=201)
async def put_blob(request: Request, sha256: Hex, _: Publisher) -> dict[str, int]:
    """Upload a file under its SHA-256."""
    rooms = _rooms(request)
    limit, length = rooms.settings.max_blob_bytes, request.headers.get("content-length", "")
    if not length.isdigit():
        raise InputError("LENGTH_REQUIRED", "an upload says its length (Content-Length)")
    if int(length) > limit:
        raise InputError("BLOB_TOO_LARGE", f"{length} bytes; at most {limit}")
    return {"size_bytes": await rooms.blobs.put(sha256, request.stream())}


@router.post("/v1/models/{name}/versions", status_code=201)
async def publish(request: Request, name: Name, body: NewVersion, person: Publisher) -> Version:
    """Publish a version."""
    return await _rooms(request).registry.publish(name, body.manifest.encode(), person.name)


@router.get("/v1/models")
async def list_models(request: Request, _: Viewer, name: str = "") -> list[Version]:
    """List what was published."""
    return await _rooms(request).registry.versions(name)


@router.put("/v1/models/{name}/aliases/{alias}", status_code=204)
async def set_alias(request: Request, name: Name, alias: str, body: AliasTarget, person: Publisher) -> None:
    """Let an alias mean a version."""
    await _rooms(request).registry.set_alias(name, alias, body.version, person.name)


@router.get("/files/{name}/{version}/manifest.json")
async def get_manifest(request: Request, name: Name, version: str) -> Response:
    """Give a manifest to whoever can reach the server, as a static web server would."""
    return Response(await _rooms(request).registry.manifest(name, version), media_type="application/json")


@router.get("/files/blobs/sha256/{sha256}")
async def get_blob(request: Request, sha256: Hex) -> FileResponse:
    """Give a file, from any byte on (``Range``)."""
    path = _rooms(request).blobs.path(sha256)
    if not path.is_file():
        raise MissingError("BLOB_MISSING", f"blob {sha256} is not here")
    return FileResponse(path, media_type="application/octet-stream", headers={"ETag": f'"{sha256}"'})
