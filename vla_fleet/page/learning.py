# SPDX-License-Identifier: Apache-2.0
"""Learning: what robots recorded, the data sets that were built of it, and the versions that were trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from vla_fleet import protocol
from vla_fleet.episodes.store import Filter
from vla_fleet.page.access import PageRoute, Viewer
from vla_fleet.page.paging import PER_PAGE
from vla_fleet.page.render import page
from vla_fleet.server.episodes import Prefix, episode_file
from vla_fleet.server.rooms import Rooms, rooms_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_NEWEST = 10
"""Data sets and versions shown."""


@router.get("/learning")
async def show_learning(
    request: Request,
    person: Viewer,
    robot: protocol.Word = "",
    version: protocol.Word = "",
    outcome: Literal["", "success", "failure", "unknown"] = "",
    corrected: protocol.Word = "",
    before: Annotated[int, Query(ge=0, le=protocol.MAX_SEQ)] = 0,
) -> Response:
    """Show episodes, newest first, and what was made of them."""
    wanted = Filter(robot.strip(), "", version.strip(), outcome, bool(corrected), before)
    rooms = rooms_of(request)
    found = await rooms.shared.get(wanted, lambda: rooms.episodes.list(wanted, PER_PAGE + 1))
    values = {"robot": wanted.robot, "version": wanted.version, "outcome": outcome, "corrected": corrected}
    return page(
        request, "learning.html", episodes=found[:PER_PAGE], values=values, before=before,
        older=found[PER_PAGE - 1].number if len(found) > PER_PAGE else 0,
        data_sets=await rooms.shared.get("data_sets", lambda: rooms.data_sets.list("", _NEWEST)),
        trained=(await rooms.shared.get("trained", lambda: _trained(rooms)))[:_NEWEST],
    )  # fmt: skip


@router.get("/learning/episodes/{episode}")
async def get_episode(request: Request, episode: Prefix, person: Viewer) -> Response:
    """Give an episode's file, which Foxglove opens."""
    return await episode_file(request, episode)


async def _trained(rooms: Rooms) -> list[dict[str, Any]]:
    """Return the versions that say of which run they are, newest first."""
    versions = sorted(await rooms.registry.versions(), key=lambda version: -version.published_s)
    lineages = {(own.name, own.version): own.lineage for own in await rooms.registry.lineage()}
    return [
        {"version": version, "lineage": lineage, "gate": list(gate_lines(lineage.get("gate")))}
        for version in versions
        if "training_run" in (lineage := lineages.get((version.name, version.version), {}))
    ]


def gate_lines(gate: Any) -> Iterator[str]:
    """Give what the gate found, a line for each check; nothing if a publisher wrote something else there."""
    checks = gate.get("checks") if isinstance(gate, dict) else None
    for check in checks if isinstance(checks, list) else ():
        if isinstance(check, dict):
            passed = check.get("passed")
            word = "passed" if passed is True else "failed" if passed is False else "not judged"
            yield f"{word}: {check.get('name', '')}: {check.get('text', '')}"
