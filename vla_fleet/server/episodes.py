# SPDX-License-Identifier: Apache-2.0
"""Endpoints for episodes: robots upload them, people look at them and build data sets."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, Field, StringConstraints
from starlette.requests import ClientDisconnect

from vla_fleet import protocol
from vla_fleet.episodes.store import MAX_EPISODE_BYTES, Filter, Standing
from vla_fleet.errors import MissingError
from vla_fleet.server import ranges
from vla_fleet.server.keys import Publisher, Viewer, bearer
from vla_fleet.server.limits import refuse
from vla_fleet.server.rooms import rooms_of

router = APIRouter(tags=["episodes"])
Prefix = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}$")]


class EpisodeInfo(BaseModel):
    """An episode without its steps."""

    number: int
    sha256: str
    size_bytes: int
    robot: str
    robot_type: str
    episode_id: str
    policy: str
    version: str
    digest: str
    arm: str
    experiment: str
    instructions: list[str]
    success: bool | None
    steps: int
    corrections: int
    rate_hz: float
    started_s: float
    duration_s: float
    interface: str
    received_s: float


class NewDataSet(BaseModel):
    """A data set that was built."""

    policy: protocol.Word
    chosen_from: protocol.Text = ""
    lineage_sha256: protocol.Digest
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    new_rule: protocol.Text
    last_episode: Annotated[int, Field(ge=0, lt=2**63)]
    episodes: Annotated[int, Field(ge=0, lt=2**31)]
    frames: Annotated[int, Field(ge=0, lt=2**31)]
    corrections: Annotated[int, Field(ge=0, lt=2**31)]


class DataSetInfo(NewDataSet):
    """A data set that was built, and by whom."""

    number: int
    created_s: float
    created_by: str


# -- robots -----------------------------------------------------------------------------------------------------------------


async def _robot(request: Request) -> str:
    """Return which robot sent a request."""
    rooms = rooms_of(request)
    robot = await rooms.directory.authenticate(bearer(request.headers.get("authorization", "")))
    request.state.who = robot  # for the request log
    refuse(f"requests of {robot}", rooms.robot_messages.take(robot))
    return robot


Robot = Annotated[str, Depends(_robot)]


@router.get("/v1/robot/episodes/{sha256}")
async def show_upload(request: Request, sha256: protocol.Digest, robot: Robot) -> Standing:
    """Say how much of an episode has arrived."""
    return await rooms_of(request).episodes.standing(robot, sha256)


@router.put("/v1/robot/episodes/{sha256}")
async def upload(
    request: Request,
    sha256: protocol.Digest,
    robot: Robot,
    offset: Annotated[int, Query(ge=0, lt=2**63)],
    total_bytes: Annotated[int, Query(ge=1, lt=2**63)],
) -> Standing:
    """Take in an episode, or a piece of it from byte ``offset`` on. What arrived stays, whatever ends the request."""
    store = rooms_of(request).episodes
    if total_bytes > MAX_EPISODE_BYTES:
        raise HTTPException(413, f"an episode has at most {MAX_EPISODE_BYTES} bytes")
    try:
        return await store.receive(robot, sha256, offset, total_bytes, request.stream())
    except ClientDisconnect:
        return await store.standing(robot, sha256)  # nobody reads it


# -- people -----------------------------------------------------------------------------------------------------------------


@router.get("/v1/episodes")
async def list_episodes(
    request: Request,
    _: Viewer,
    robot: protocol.Word = "",
    policy: protocol.Word = "",
    version: protocol.Word = "",
    outcome: Literal["", "success", "failure", "unknown"] = "",
    corrected: bool = False,
    before: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[EpisodeInfo]:
    """List episodes, the newest first: those before number ``before``."""
    wanted = Filter(robot, policy, version, outcome, corrected, before)
    rows = await rooms_of(request).episodes.list(wanted, limit)
    return [EpisodeInfo.model_validate(row, from_attributes=True) for row in rows]


@router.get("/v1/episodes/{episode}")
async def show_episode(request: Request, episode: Prefix, _: Viewer) -> EpisodeInfo:
    """Show the episode whose SHA-256 begins so."""
    return EpisodeInfo.model_validate(await rooms_of(request).episodes.find(episode), from_attributes=True)


@router.get("/v1/episodes/{episode}/file", response_class=FileResponse)
async def get_episode(request: Request, episode: Prefix, _: Viewer) -> Response:
    """Give an episode's file, from any byte on (``Range``)."""
    store = rooms_of(request).episodes
    row = await store.find(episode)
    missing = MissingError("EPISODE_NOT_FOUND", f"{row.sha256}: its file is not on this server any more")
    if store.files.objects is not None:
        return await ranges.blob(request, store.files.objects, row.sha256, missing, f"{row.sha256}.mcap")
    path = store.files.path(row.sha256)
    if not path.is_file():
        raise missing
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


@router.get("/v1/datasets")
async def list_data_sets(
    request: Request, _: Viewer, policy: protocol.Word = "", limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> list[DataSetInfo]:
    """List data sets that were built, the newest first."""
    rows = await rooms_of(request).data_sets.list(policy, limit)
    return [DataSetInfo.model_validate(row, from_attributes=True) for row in rows]


@router.post("/v1/datasets", status_code=201)
async def add_data_set(request: Request, body: NewDataSet, person: Publisher) -> DataSetInfo:
    """Keep that a data set was built; what is received from then on is new to the next one."""
    row = await rooms_of(request).data_sets.add(body.model_dump(), person.name)
    return DataSetInfo.model_validate(row, from_attributes=True)
