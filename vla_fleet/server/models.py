# SPDX-License-Identifier: Apache-2.0
"""Endpoints of the registry."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from vla_checkpoint.delta import Offer
from vla_fleet import protocol
from vla_fleet.errors import InputError, MissingError
from vla_fleet.protocol import Name, Version
from vla_fleet.registry.garbage import Collected
from vla_fleet.registry.registry import Ancestry, Move, touch
from vla_fleet.registry.registry import Version as Published
from vla_fleet.server.keys import Admin, Publisher, Viewer
from vla_fleet.server.rooms import Rooms, rooms_of

router = APIRouter(tags=["models"])


class NewVersion(BaseModel):
    """A version to publish; its blobs are uploaded before."""

    manifest: str
    """The bytes of manifest.json as text: canonical JSON."""


class NewDelta(BaseModel):
    """A delta to offer; it is uploaded before, as a blob."""

    sha256: protocol.Digest


class AliasTarget(BaseModel):
    """Where an alias points, and why."""

    version: Version
    reason: protocol.Text = ""


class SignedTargets(BaseModel):
    """Which versions there are, signed by a publisher."""

    metadata: str
    """The bytes of the next ``N.targets.json`` as text."""


class Collection(BaseModel):
    """How garbage is collected."""

    dry_run: bool = False


@router.head("/v1/blobs/{sha256}")
async def has_blob(request: Request, sha256: protocol.Digest, _: Publisher) -> Response:
    """Say whether a blob has been uploaded. Whoever asks is about to publish: the blob is not collected for a day."""
    await _touch(rooms_of(request), sha256)
    size = await rooms_of(request).blobs.size(sha256)
    if size is None:
        raise MissingError("BLOB_MISSING", f"blob {sha256} has not been uploaded")
    return Response(headers={"Content-Length": str(size)})


@router.put("/v1/blobs/{sha256}", status_code=201)
async def put_blob(request: Request, sha256: protocol.Digest, _: Publisher) -> dict[str, int]:
    """Upload a file under its SHA-256."""
    rooms = rooms_of(request)
    limit, length = rooms.settings.max_blob_bytes, request.headers.get("content-length", "")
    if not length.isdigit():
        raise InputError("LENGTH_REQUIRED", "an upload says its length (Content-Length)")
    if int(length) > limit:
        raise InputError("BLOB_TOO_LARGE", f"{length} bytes; at most {limit}")
    await _touch(rooms, sha256)
    size = await rooms.blobs.put(sha256, request.stream())
    await _touch(rooms, sha256)  # an upload may take long
    return {"size_bytes": size}


async def _touch(rooms: Rooms, sha256: str) -> None:
    async with rooms.database.begin() as session:
        await touch(session, [sha256], rooms.clock.now())


@router.post("/v1/models/{name}/versions", status_code=201)
async def publish(request: Request, name: Name, body: NewVersion, person: Publisher) -> Published:
    """Publish a version."""
    rooms = rooms_of(request)
    published = await rooms.registry.publish(name, body.manifest.encode(), person.name)
    await rooms.signing.bring_up_to_date()
    return published


@router.post("/v1/models/{name}/versions/{version}/deltas", status_code=201)
async def offer_delta(request: Request, name: Name, version: Version, body: NewDelta, person: Publisher) -> Offer:
    """Offer a delta that makes a file of a version to the robots that hold what it is made of."""
    return await rooms_of(request).deltas.offer(name, version, body.sha256, person.name)


@router.get("/v1/models")
async def list_models(request: Request, _: Viewer, name: protocol.Word = "") -> list[Published]:
    """List what was published, retired versions too."""
    return await rooms_of(request).registry.versions(name)


@router.get("/v1/models/{name}/lineage")
async def show_lineage(request: Request, name: Name, _: Viewer) -> list[Ancestry]:
    """Show where each version of a model comes from."""
    return await rooms_of(request).registry.lineage(name)


@router.delete("/v1/models/{name}/versions/{version}")
async def retire(request: Request, name: Name, version: Version, person: Publisher) -> Published:
    """Take a version out of use. Robots that hold it keep it, and its files stay for them."""
    rooms = rooms_of(request)
    retired = await rooms.registry.retire(name, version, person.name)
    await rooms.signing.bring_up_to_date()
    return retired


@router.get("/v1/trust")
async def show_trust(request: Request, _: Viewer) -> dict[str, str]:
    """Give every file of signed metadata, by name; none if nothing is signed."""
    return await rooms_of(request).signing.files()


@router.put("/v1/trust/targets", status_code=204)
async def put_targets(request: Request, body: SignedTargets, _: Publisher) -> None:
    """Take targets that a publisher has signed with the key of targets."""
    await rooms_of(request).signing.take_targets(body.metadata.encode())


@router.get("/v1/models/{name}/aliases")
async def list_moves(request: Request, name: Name, _: Viewer, alias: protocol.Word = "") -> list[Move]:
    """Show who moved a model's aliases from where to where, and why."""
    return await rooms_of(request).registry.moves(name, alias)


@router.put("/v1/models/{name}/aliases/{alias}", status_code=204)
async def set_alias(request: Request, name: Name, alias: protocol.Word, body: AliasTarget, person: Publisher) -> None:
    """Let an alias mean a version."""
    await rooms_of(request).registry.set_alias(name, alias, body.version, person.name, body.reason)


@router.post("/v1/garbage-collections")
async def collect_garbage(request: Request, body: Collection, person: Admin) -> Collected:
    """Remove the files that no version, robot or upload needs."""
    return await rooms_of(request).garbage.collect(person.name, dry_run=body.dry_run)
