# SPDX-License-Identifier: Apache-2.0
"""The files that robots fetch, and who may.

A robot's manager downloads with plain GET requests. So an order's URL carries a *pass* as a folder of its path: the robot's name,
when the pass ends, and an HMAC of both. A manifest names its blobs relative to itself, so their URLs carry it as well. People
and programs send their key, robots may send their token.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from vla_fleet import protocol
from vla_fleet.errors import MissingError, RoleError
from vla_fleet.protocol import Name, Version
from vla_fleet.server import ranges
from vla_fleet.server.keys import bearer, person_of
from vla_fleet.server.rooms import rooms_of
from vla_fleet.storage.blobs import FilesBy
from vla_fleet.storage.object_blobs import ObjectBlobs

router = APIRouter(tags=["files"])

ACCEL = "/vla_fleet_blobs"
"""Where the nginx in front finds the folder ``DATA/blobs/sha256``: an internal location, see ``deploy/nginx.conf``."""


async def _reader(request: Request) -> None:
    """Let in whoever has a key or a robot's token; everybody if the operator opened the files."""
    rooms = rooms_of(request)
    if rooms.settings.open_files:
        return
    secret = bearer(request.headers.get("authorization", ""))
    if secret.startswith("vr_"):
        await rooms.directory.authenticate(secret)
    else:
        await person_of(request, secret)


async def _bearer_of_pass(request: Request, ticket: str) -> None:
    """Let in the robot that a pass was made for, while it is not revoked."""
    rooms = rooms_of(request)
    robot = rooms.passes.holder(ticket)
    if (await rooms.directory.robot(robot)).revoked:
        raise RoleError("PASS_INVALID", f"{robot} is revoked")


Reader = Annotated[None, Depends(_reader)]
Bearer = Annotated[None, Depends(_bearer_of_pass)]


@router.get("/files/{name}/{version}/manifest.json")
async def get_manifest(request: Request, name: Name, version: Version, _: Reader) -> Response:
    """Give a manifest."""
    return Response(await rooms_of(request).registry.manifest(name, version), media_type="application/json")


@router.get("/files/{name}/{version}/deltas.json")
async def get_deltas(request: Request, name: Name, version: Version, _: Reader) -> Response:
    """Give the deltas that make a version's files."""
    return Response(await rooms_of(request).deltas.page(name, version), media_type="application/json")


@router.get("/files/blobs/sha256/{sha256}", response_class=FileResponse)
async def get_blob(request: Request, sha256: protocol.Digest, _: Reader) -> Response:
    """Give a file, from any byte on (``Range``)."""
    return await _file(request, sha256)


@router.get("/files/{ticket}/{name}/{version}/manifest.json")
async def get_manifest_by_pass(request: Request, name: Name, version: Version, _: Bearer) -> Response:
    """Give a manifest to the robot that was ordered to install it."""
    return Response(await rooms_of(request).registry.manifest(name, version), media_type="application/json")


@router.get("/files/{ticket}/{name}/{version}/deltas.json")
async def get_deltas_by_pass(request: Request, name: Name, version: Version, _: Bearer) -> Response:
    """Give the deltas that make a version's files to the robot that was ordered to install it."""
    return Response(await rooms_of(request).deltas.page(name, version), media_type="application/json")


@router.get("/files/{ticket}/blobs/sha256/{sha256}", response_class=FileResponse)
async def get_blob_by_pass(request: Request, sha256: protocol.Digest, _: Bearer) -> Response:
    """Give a file to a robot, from any byte on (``Range``)."""
    return await _file(request, sha256)


@router.get("/files/trust/{file}")
async def get_trust(request: Request, file: protocol.Word, _: Reader) -> Response:
    """Give a file of signed metadata."""
    return Response(await rooms_of(request).signing.file(file), media_type="application/json")


@router.get("/files/{ticket}/trust/{file}")
async def get_trust_by_pass(request: Request, file: protocol.Word, _: Bearer) -> Response:
    """Give a file of signed metadata to a robot."""
    return Response(await rooms_of(request).signing.file(file), media_type="application/json")


async def _file(request: Request, sha256: str) -> Response:
    rooms = rooms_of(request)
    blobs, by = rooms.blobs, rooms.settings.files_by
    missing = MissingError("BLOB_MISSING", f"blob {sha256} is not here")
    if by is FilesBy.SERVER:
        return await ranges.blob(request, blobs, sha256, missing)
    if await blobs.size(sha256) is None:
        raise missing
    if isinstance(blobs, ObjectBlobs):
        return RedirectResponse(await blobs.link(sha256), 307, {"Cache-Control": "no-store"})
    return Response(media_type="application/octet-stream", headers={"X-Accel-Redirect": f"{ACCEL}/{sha256}"})
