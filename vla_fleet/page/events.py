# SPDX-License-Identifier: Apache-2.0
"""Events of robots, newest first."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from vla_fleet import protocol
from vla_fleet.page.access import PageRoute, Viewer
from vla_fleet.page.paging import PER_PAGE
from vla_fleet.page.render import page
from vla_fleet.robots.history import Events
from vla_fleet.server.rooms import rooms_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_STATES = ("ACTIVE", "COMMITTED", "ROLLED_BACK", "REJECTED", "FAILED", "CANCELLED", "TRIAL", "INSTALLED", "FETCHING")
"""What an event may lead to and people look for; any other can be written into the address."""


@router.get("/events")
async def list_events(
    request: Request,
    person: Viewer,
    robot: protocol.Word = "",
    version: protocol.Word = "",
    to: protocol.Word = "",
    error: protocol.Word = "",
    before: Annotated[int, Query(ge=0, le=protocol.MAX_SEQ)] = 0,
) -> Response:
    """Show what happened on robots."""
    wanted = Events(robot.strip(), version.strip(), to, bool(error), before)
    rooms = rooms_of(request)
    found = await rooms.shared.get(wanted, lambda: rooms.history.events(wanted, PER_PAGE + 1))
    values = {"robot": wanted.robot, "version": wanted.version, "to": to, "error": error}
    states = (*_STATES, to) if to and to not in _STATES else _STATES
    return page(
        request, "events.html", events=found[:PER_PAGE], values=values, states=states, before=before,
        older=found[PER_PAGE - 1].id if len(found) > PER_PAGE else 0,
    )  # fmt: skip
