# SPDX-License-Identifier: Apache-2.0
"""The fleet: what its robots run now and ran before, and the robots themselves, fifty at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response

from vla_checkpoint import CheckpointError, parse_version
from vla_fleet import protocol
from vla_fleet.experiments.evidence import State as ExperimentState
from vla_fleet.page import charts
from vla_fleet.page.access import PageRoute, Viewer
from vla_fleet.page.paging import PER_PAGE, Number, Rows, offset
from vla_fleet.page.render import ago, page
from vla_fleet.robots.overview import Counts, Course, Filter, Sort
from vla_fleet.rollouts.engine import State
from vla_fleet.server.rooms import Rooms, rooms_of
from vla_fleet.storage.tables import RobotRow

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_STEPS = 96
_SPANS = {"day": ("24 h", 86400.0), "week": ("7 d", 7 * 86400.0), "month": ("30 d", 30 * 86400.0)}
_COURSE_S = 15.0
"""So long a drawing of what robots ran is good."""
_NOTHING = protocol.Status(time_s=0.0).model_dump(mode="json")
Word = protocol.Word


@dataclass(frozen=True)
class Part:
    """The robots that run a version; shares are of all."""

    name: str
    robots: int
    before: float
    share: float
    color: int


@router.get("/")
async def show_fleet(
    request: Request,
    person: Viewer,
    q: Word = "",
    version: Word = "",
    state: Word = "",
    line: Literal["", "online", "offline"] = "",
    holding: Word = "",
    error: Word = "",
    sort: Sort = "name",
    span: Literal["day", "week", "month"] = "day",
    number: Number = 1,
) -> Response:
    """Show the fleet."""
    rooms = rooms_of(request)
    counts = await rooms.shared.get("counts", lambda: rooms.overview.counts(rooms.online_since_s()))
    course = await rooms.shared.get(("course", span), lambda: _course(rooms, span), at_least_s=_COURSE_S)
    wanted = Filter(
        q, _or_none(version), _or_none(state), {"online": True, "offline": False}.get(line), bool(holding), bool(error)
    )
    total, rows = await rooms.shared.get(
        (wanted, sort, number),
        lambda: rooms.overview.robots(wanted, rooms.online_since_s(), sort, offset(number), PER_PAGE),
    )
    names = _by_age({*counts.versions, *course.versions})
    values = {
        "q": q, "version": version, "state": state, "line": line, "holding": holding, "error": error,
        "sort": sort if sort != "name" else "", "span": span if span != "day" else "",
    }  # fmt: skip
    return page(
        request, "fleet.html", counts=counts, versions=_parts(counts, names), states=sorted(counts.states.items()),
        chart=_chart(course, names), spans=[(name, text) for name, (text, _) in _SPANS.items()], span=span, values=values,
        filtered=any(values[name] for name in ("q", "version", "state", "line", "holding", "error")),
        robots=Rows([_row(rooms, row) for row in rows], total, number), sort=sort,
        rollouts=await _rollouts(rooms), experiments=await _experiments(rooms),
    )  # fmt: skip


def _or_none(text: str) -> str | None:
    """Return what a filter asks for: nothing, what is empty, or the text."""
    return None if not text else "" if text == "none" else text


def status_of(row: RobotRow) -> dict[str, Any]:
    """Return a robot's newest status with every field."""
    return {**_NOTHING, **row.status}


def _row(rooms: Rooms, row: RobotRow) -> Mapping[str, Any]:
    return {
        "name": row.name, "group": row.group, "online": rooms.online(row.last_seen_s), "revoked": row.revoked,
        "status": status_of(row), "seen": ago(row.last_seen_s, rooms.clock.now()),
    }  # fmt: skip


async def _rollouts(rooms: Rooms) -> list[Any]:
    found = await rooms.shared.get("rollouts", rooms.rollouts.all)
    return [rollout for rollout in found if not State(rollout.state).ended]


async def _experiments(rooms: Rooms) -> list[Any]:
    found = await rooms.shared.get("experiments", rooms.experiments.experiments)
    return [row for row in found if row.state == ExperimentState.RUNNING]


# -- versions ---------------------------------------------------------------------------------------------------------------


def _by_age(versions: set[str]) -> list[str]:
    """Return versions, the oldest first; what is no version of ours comes before them, and nothing at the end."""

    def age(name: str) -> tuple[int, Any, str]:
        try:
            return 1, parse_version(name), name
        except CheckpointError:
            return (0 if name else 2), 0, name

    return sorted(versions, key=age)


def _color(names: list[str], name: str) -> int:
    return names.index(name) % charts.COLORS


def _parts(counts: Counts, names: list[str]) -> list[Part]:
    parts, before = [], 0
    for name in names:
        if robots := counts.versions[name]:
            share = robots / counts.robots
            parts.append(Part(name, robots, before / counts.robots, share, _color(names, name)))
            before += robots
    return parts


async def _course(rooms: Rooms, span: str) -> Course:
    end_s = rooms.clock.now()
    return await rooms.overview.course(end_s - _SPANS[span][1], end_s, _STEPS)


def _chart(course: Course, names: list[str]) -> charts.Chart:
    shown = [name for name in names if any(course.versions.get(name, ()))]
    columns = [course.versions[name] for name in shown]
    top, labels = charts.counts(max(map(sum, zip(*columns, strict=True)), default=0))
    last = ", ".join(f"{column[-1]:,} run {name}" for name, column in zip(shown, columns, strict=True))
    made = charts.Chart(
        title="Robots", words=f"Robots by version over time. At the end {last or 'no robot ran anything'}.",
        x=charts.times(course.begin_s, course.end_s), y=labels,
    )  # fmt: skip
    for name, path in zip(shown, charts.stacked(columns, top), strict=True):
        made.shapes.append(charts.Shape(f"area c{_color(names, name)}", path))
        made.legend.append((f"area c{_color(names, name)}", name))
    return made
