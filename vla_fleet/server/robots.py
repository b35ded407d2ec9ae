# SPDX-License-Identifier: Apache-2.0
"""Endpoints for robots and for what people order them to do."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from sqlalchemy import select

from vla_fleet import protocol
from vla_fleet.errors import SignInError
from vla_fleet.protocol import Name
from vla_fleet.robots.history import Run
from vla_fleet.server.keys import Admin, Operator, Viewer
from vla_fleet.server.limits import refuse
from vla_fleet.server.rooms import Rooms, rooms_of
from vla_fleet.storage.tables import CommandRow, EventRow, RobotRow

router = APIRouter(tags=["robots"])


class CodeRequest(BaseModel):
    """Which robot a code enrols."""

    robot: Name
    group: Name = "default"
    tags: Annotated[list[Name], Field(max_length=32)] = []
    valid_s: Annotated[float, Field(gt=0, le=7 * 86400)] = 3600.0


class Code(BaseModel):
    """A code that enrols one robot once."""

    code: protocol.Word


class Enrolled(BaseModel):
    """A robot's name and its token, which is shown once."""

    robot: str
    token: str


class Robots(BaseModel):
    """Which robots a request means: named ones, a group, or all."""

    robots: Annotated[list[Name], Field(max_length=10_000)] = []
    group: protocol.Word = ""
    everyone: bool = False


class Deployment(Robots):
    """A version for robots at once, without a rollout."""

    model: protocol.Word
    """``name@version``, ``name@alias`` or ``name``."""
    urgent: bool = False
    allow_older: bool = False
    """Also to robots with a trust root that have committed a newer one."""


class RollbackRequest(Robots):
    """Robots that are to go back."""

    version: protocol.Version = ""
    reason: protocol.Text = ""


class RobotInfo(BaseModel):
    """A robot as people see it."""

    name: str
    group: str
    tags: list[str]
    online: bool
    last_seen_s: float
    software: str
    revoked: bool
    rotating: bool
    """A new token is on its way to the robot."""
    status: dict[str, Any]


class CommandInfo(BaseModel):
    """An order to one robot, and how it stands."""

    id: str
    robot: str
    order: dict[str, Any]
    created_s: float
    created_by: str
    state: str
    final: bool
    robot_state: str
    version: str
    error_code: str
    message: str
    updated_s: float


class EventInfo(BaseModel):
    """One transition on one robot."""

    robot: str
    time_s: float
    update_id: str
    from_state: str
    to_state: str
    version: str
    digest: str
    cause: str
    error_code: str
    message: str


def _robot(rooms: Rooms, row: RobotRow) -> RobotInfo:
    online = rooms.online(row.last_seen_s)
    return RobotInfo(
        name=row.name, group=row.group, tags=row.tags, online=online, last_seen_s=row.last_seen_s, software=row.software,
        revoked=row.revoked, rotating=row.rotate, status=row.status,
    )  # fmt: skip


def _command(row: CommandRow) -> CommandInfo:
    return CommandInfo.model_validate(row, from_attributes=True)


@router.post("/v1/enrolment-codes", status_code=201)
async def make_code(request: Request, body: CodeRequest, person: Admin) -> Code:
    """Make a code that enrols one robot once."""
    directory = rooms_of(request).directory
    return Code(code=await directory.make_code(body.robot, body.group, body.tags, body.valid_s, person.name))


@router.post("/v1/enrol", status_code=201)
async def enrol(request: Request, body: Code) -> Enrolled:
    """Trade an enrolment code for a token. Called by the robot, which has no key."""
    rooms = rooms_of(request)
    address = request.client.host if request.client else ""
    refuse("wrong enrolment codes", rooms.enrolment_failures.wait_s(address))
    try:
        robot, token = await rooms.directory.enrol(body.code)
    except SignInError:
        rooms.enrolment_failures.take(address)
        raise
    return Enrolled(robot=robot, token=token)


@router.delete("/v1/robots/{name}/token", status_code=204)
async def revoke(request: Request, name: Name, person: Admin) -> None:
    """End a robot's token."""
    await rooms_of(request).directory.revoke(name, person.name)


@router.post("/v1/token-rotations", status_code=202)
async def rotate(request: Request, body: Robots, person: Admin) -> list[str]:
    """Let robots trade their tokens for new ones; return their names. The old one ends when the robot uses the new one."""
    directory = rooms_of(request).directory
    robots = await directory.choose(body.robots, body.group, everyone=body.everyone)
    await directory.rotate(robots, person.name)
    return robots


@router.get("/v1/robots")
async def list_robots(
    request: Request, _: Viewer, after: protocol.Word = "", limit: Annotated[int, Query(ge=1, le=1000)] = 1000
) -> list[RobotInfo]:
    """List robots by name, those that come after ``after``."""
    rooms = rooms_of(request)
    return [_robot(rooms, row) for row in await rooms.directory.robots(after, limit)]


@router.get("/v1/robots/{name}")
async def show_robot(request: Request, name: Name, _: Viewer) -> RobotInfo:
    """Show one robot."""
    rooms = rooms_of(request)
    return _robot(rooms, await rooms.directory.robot(name))


@router.get("/v1/robots/{name}/history")
async def show_history(
    request: Request,
    name: Name,
    _: Viewer,
    at_s: Annotated[float | None, Query(ge=0, le=1e12)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[Run]:
    """Show what ran on a robot, when, and who decided it, newest first; with ``at_s`` only what ran at that moment."""
    rooms = rooms_of(request)
    return await rooms.history.runs(await rooms.directory.robot(name), at_s, limit)


@router.post("/v1/deployments", status_code=202)
async def deploy(request: Request, body: Deployment, person: Operator) -> list[CommandInfo]:
    """Order robots to install a version."""
    rooms = rooms_of(request)
    version = await rooms.registry.find(body.model)
    robots = await rooms.directory.choose(body.robots, body.group, everyone=body.everyone)
    url = rooms.manifest_url(version.name, version.version)
    order = protocol.ModelUpdate(
        name=version.name,
        version=version.version,
        manifest_url=url,
        manifest_sha256=version.digest,
        urgent=body.urgent,
        allow_older=body.allow_older,
    )
    return [_command(row) for row in await rooms.commands.issue(robots, order, person.name)]


@router.post("/v1/rollbacks", status_code=202)
async def rollback(request: Request, body: RollbackRequest, person: Operator) -> list[CommandInfo]:
    """Order robots to go back, to a version or to their previous one."""
    rooms = rooms_of(request)
    robots = await rooms.directory.choose(body.robots, body.group, everyone=body.everyone)
    order = protocol.Rollback(version=body.version, reason=body.reason or f"asked for by {person.name}")
    return [_command(row) for row in await rooms.commands.issue(robots, order, person.name)]


@router.get("/v1/commands")
async def list_commands(
    request: Request, _: Viewer, id: Annotated[list[protocol.Id], Query(max_length=1000)]
) -> list[CommandInfo]:
    """Show how commands stand."""
    return [_command(row) for row in await rooms_of(request).commands.find(id)]


@router.get("/v1/events")
async def list_events(
    request: Request, _: Viewer, robot: protocol.Word = "", limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> list[EventInfo]:
    """Show what happened on robots, newest first."""
    query = select(EventRow).order_by(EventRow.time_s.desc(), EventRow.id.desc()).limit(limit)
    async with rooms_of(request).database.begin() as session:
        rows = await session.scalars(query.where(EventRow.robot == robot) if robot else query)
        return [EventInfo.model_validate(row, from_attributes=True) for row in rows]
