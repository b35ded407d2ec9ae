# SPDX-License-Identifier: Apache-2.0
"""One robot: what it runs and holds, how it does, what it was ordered, and what ran at a moment."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from vla_evidence.sequential.intervals import confidence_sequence
from vla_fleet import protocol
from vla_fleet.errors import InputError
from vla_fleet.page.access import Form, Operator, PageRoute, Viewer, may_order
from vla_fleet.page.fleet import status_of
from vla_fleet.page.render import ago, page
from vla_fleet.protocol import Name
from vla_fleet.robots.history import Success
from vla_fleet.server.rooms import rooms_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_RUNS, _ORDERS = 20, 10


@router.get("/robots/{name}")
async def show_robot(
    request: Request, name: Name, person: Viewer, at: Annotated[str, Query(max_length=40)] = ""
) -> Response:
    """Show a robot; with ``at`` also what ran at that moment."""
    rooms = rooms_of(request)
    row = await rooms.directory.robot(name)
    at_s = _moment(at)
    status = status_of(row)
    return page(
        request, "robot.html", robot=row, online=rooms.online(row.last_seen_s), status=status, held=_held(status),
        seen=ago(row.last_seen_s, rooms.clock.now()), success=[_rated(own) for own in await rooms.history.success(name)],
        orders=await rooms.commands.latest(name, _ORDERS), runs=await rooms.history.runs(row, None, _RUNS), at=at, at_s=at_s,
        then=await rooms.history.runs(row, at_s, 1) if at_s is not None else [], may_order=may_order(person),
    )  # fmt: skip


def _moment(text: str) -> float | None:
    """Return a time in UTC as browsers write it, [s since 1970]; None: none is given."""
    if not text:
        return None
    try:
        return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()
    except ValueError as e:
        raise InputError("INPUT_INVALID", f"at: {text!r} is not a time; write 2026-11-20T14:02 (UTC)") from e


def _held(status: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the versions on a robot, and what each is to it."""
    roles = {
        "runs": status["active_version"], "committed": status["committed_version"], "on trial": status["trial_version"],
        "adapted here": status["adapted_version"], "previous": status["previous_version"],
    }  # fmt: skip
    known = [*status["versions"], *roles.values(), *status["blocked"]]
    return [
        (
            version,
            [role for role, own in roles.items() if own == version] + ["blocked"] * (version in status["blocked"]),
        )
        for version in dict.fromkeys(filter(None, known))
    ]


def _rated(own: Success) -> dict[str, Any]:
    low, high = confidence_sequence(own.successes, own.episodes)
    return {"of": own, "rate": own.successes / own.episodes, "low": float(low), "high": float(high)}


@router.get("/robots/{name}/rollback")
async def ask_rollback(request: Request, name: Name, person: Operator) -> Response:
    """Ask before a robot goes back."""
    status = status_of(await rooms_of(request).directory.robot(name))
    runs, previous = status["active_version"] or "nothing", status["previous_version"]
    goal = previous or "the version before, if it has one"
    texts = [f"It runs {runs}. It goes back to {goal}, at once, also in the midst of an update."]
    return page(
        request, "confirm.html", title=f"Roll {name} back?", texts=texts, choices=[], fields=[], reason=False,
        button="Roll back", style="danger", back=f"/robots/{name}",
    )  # fmt: skip


@router.post("/robots/{name}/rollback")
async def roll_back(request: Request, name: Name, person: Operator, form: Form) -> Response:
    """Order a robot back to its previous version."""
    rooms = rooms_of(request)
    robots = await rooms.directory.choose([name], "")
    order = protocol.Rollback(reason=form.get("reason", "")[:1000] or f"asked for by {person.name}")
    await rooms.commands.issue(robots, order, person.name)
    return RedirectResponse(f"/robots/{name}", 303)
