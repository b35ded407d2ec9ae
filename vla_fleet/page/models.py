# SPDX-License-Identifier: Apache-2.0
"""Models: what was published, where it comes from, which names point to it, and on how many robots it acts."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from vla_fleet.page.access import PageRoute, Viewer
from vla_fleet.page.learning import gate_lines
from vla_fleet.page.render import page
from vla_fleet.protocol import Name
from vla_fleet.registry.registry import Version
from vla_fleet.server.rooms import Rooms, rooms_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/models")
async def list_models(request: Request, person: Viewer) -> Response:
    """List models with their newest versions."""
    rooms = rooms_of(request)
    versions = await rooms.shared.get("models", rooms.registry.versions)
    models: dict[str, list[Version]] = {}
    for version in versions:
        models.setdefault(version.name, []).append(version)
    return page(request, "models.html", models=models, runs=await _runs(rooms))


@router.get("/models/{name}")
async def show_model(request: Request, name: Name, person: Viewer) -> Response:
    """Show a model's versions, their origin, and its aliases."""
    rooms = rooms_of(request)
    lineage = await rooms.registry.lineage(name)
    versions = {version.version: version for version in await rooms.registry.versions(name)}
    return page(
        request, "model.html", name=name, runs=await _runs(rooms),
        lineage=[(versions[own.version], own, list(gate_lines(own.lineage.get("gate")))) for own in lineage],
        aliases=sorted((alias, version.version) for version in versions.values() for alias in version.aliases),
        moves=await rooms.registry.moves(name),
    )  # fmt: skip


async def _runs(rooms: Rooms) -> dict[str, int]:
    """Return on how many robots each version acts, by its digest."""
    return await rooms.shared.get("digests", rooms.overview.digests)
