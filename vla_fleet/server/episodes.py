# SPDX-License-Identifier: Apache-2.0
"""Endpoints for episodes: people look at them and build data sets of them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, Field, StringConstraints

from vla_fleet import protocol
from vla_fleet.episodes.store import Filter
from vla_fleet.errors import MissingError
from vla_fleet.server.keys import Publisher, Viewer
from vla_fleet.server.rooms import rooms_of
from vla_fleet.server.uploads import uploaded_file

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
    return await episode_file(request, episode)


async def episode_file(request: Request, episode: str) -> Response:
    """Return the file of the episode whose SHA-256 begins so."""
    store = rooms_of(request).episodes
    row = await store.find(episode)
    missing = MissingError("EPISODE_NOT_FOUND", f"{row.sha256}: its file is not on this server any more")
    return await uploaded_file(request, store.files, row.sha256, missing)


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
