# SPDX-License-Identifier: Apache-2.0
"""Endpoints for rollouts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from vla_fleet.protocol import Id, Text
from vla_fleet.rollouts.rollouts import Forecast, RolloutInfo, Rollouts
from vla_fleet.rollouts.settings import RolloutRequest
from vla_fleet.server.keys import Operator, Viewer

router = APIRouter(tags=["rollouts"])


class ForecastRequest(BaseModel):
    """A rollout, and what is assumed of the fleet."""

    rollout: RolloutRequest
    per_hour: Annotated[float, Field(gt=0, le=3600)] | None = None
    """Episodes that a robot does an hour; null: as many as it did lately."""
    drop: Annotated[float, Field(gt=0, lt=1)] = 0.10
    """Of the success rate, that makes a version bad."""


class Why(BaseModel):
    """Why somebody does something."""

    reason: Text = ""


class Reason(BaseModel):
    """Why somebody decides something; it must be said."""

    reason: Annotated[Text, Field(min_length=1)]


class Abort(Reason):
    """How a rollout ends."""

    keep: bool = False
    """Robots stay with what they have committed."""


def _rollouts(request: Request) -> Rollouts:
    rollouts: Rollouts = request.app.state.rooms.rollouts
    return rollouts


@router.post("/v1/rollouts/forecast")
async def forecast(request: Request, body: ForecastRequest, _: Viewer) -> Forecast:
    """Simulate a rollout in this fleet; takes seconds."""
    return await _rollouts(request).forecast(body.rollout, body.per_hour, body.drop)


@router.post("/v1/rollouts", status_code=201)
async def create(request: Request, body: RolloutRequest, person: Operator) -> RolloutInfo:
    """Begin a rollout."""
    return await _rollouts(request).create(body, person.name)


@router.get("/v1/rollouts")
async def list_rollouts(request: Request, _: Viewer) -> list[RolloutInfo]:
    """List rollouts, newest first, without their robots."""
    return await _rollouts(request).all()


@router.get("/v1/rollouts/{rollout}")
async def show(request: Request, rollout: Id, _: Viewer) -> RolloutInfo:
    """Show one rollout."""
    return await _rollouts(request).show(rollout)


@router.get("/v1/rollouts/{rollout}/log")
async def show_log(request: Request, rollout: Id, _: Viewer) -> PlainTextResponse:
    """Give the evidence log, which ``vla-evidence replay`` computes again."""
    return PlainTextResponse("".join(await _rollouts(request).log(rollout)), media_type="application/x-ndjson")


@router.post("/v1/rollouts/{rollout}/pause")
async def pause(request: Request, rollout: Id, body: Why, person: Operator) -> RolloutInfo:
    """Give no order and begin no stage."""
    return await _rollouts(request).pause(rollout, person.name, body.reason)


@router.post("/v1/rollouts/{rollout}/resume")
async def resume(request: Request, rollout: Id, body: Why, person: Operator) -> RolloutInfo:
    """Go on after a pause."""
    return await _rollouts(request).resume(rollout, person.name, body.reason)


@router.post("/v1/rollouts/{rollout}/approve")
async def approve(request: Request, rollout: Id, body: Reason, person: Operator) -> RolloutInfo:
    """Let the next stage begin without the judge."""
    return await _rollouts(request).approve(rollout, person.name, body.reason)


@router.post("/v1/rollouts/{rollout}/abort")
async def abort(request: Request, rollout: Id, body: Abort, person: Operator) -> RolloutInfo:
    """End a rollout; robots go back, or stay."""
    return await _rollouts(request).abort(rollout, person.name, body.reason, keep=body.keep)
