# SPDX-License-Identifier: Apache-2.0
"""Endpoints of A/B tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from vla_fleet.experiments.design import Design, Plan
from vla_fleet.experiments.evidence import Fate, Robot, difference
from vla_fleet.experiments.manager import ABTestManager
from vla_fleet.protocol import Id
from vla_fleet.rollouts.rollouts import RolloutInfo
from vla_fleet.server.keys import Operator, Viewer
from vla_fleet.storage.tables import ExperimentRobotRow, ExperimentRow

router = APIRouter(tags=["experiments"])


class Started(BaseModel):
    """An experiment that has begun."""

    id: str


class Stop(BaseModel):
    """Why an experiment is stopped."""

    reason: Annotated[str, Field(max_length=1000)] = ""


class Promotion(BaseModel):
    """Whom a rollout of the winner is for."""

    target: Annotated[str, Field(max_length=70)] = ""
    """``all``, ``group:NAME`` or ``tag:NAME``; empty: as the experiment."""


class Summary(BaseModel):
    """An experiment in one line."""

    id: str
    model: str
    a: str
    b: str
    unit: str
    state: str
    reason: str
    created_s: float
    created_by: str
    ended_s: float
    rollout: str


class ArmInfo(BaseModel):
    """What a version did."""

    version: str
    successes: int
    episodes: int
    rate: float | None
    duration_s: float | None
    """Mean of the episodes that succeeded [s]."""
    unknown: int
    """Episodes whose outcome nobody knows; they count as failures."""


class Difference(BaseModel):
    """B's success rate minus A's; the interval holds at every look, and is there if episodes are drawn."""

    difference: float
    low: float | None = None
    high: float | None = None


class Member(BaseModel):
    """A robot of an experiment."""

    robot: str
    arm: str
    state: str
    detail: str
    """Why it did not keep its version, or did not go back."""


class Report(Summary):
    """An experiment with its evidence."""

    design: Design
    plan: Plan
    decision: str
    message: str
    arms: dict[str, ArmInfo]
    difference: Difference | None
    faster: str | None
    waiting: int
    """Outcomes that wait for the other one of their pair, or for pairs before theirs."""
    apart: dict[str, int]
    """Outcomes that do not count: mixed, wrong_arm, late."""
    home: bool
    """It has ended, and no robot is on its way back."""
    robots: list[Member]


def _tests(request: Request) -> ABTestManager:
    tests: ABTestManager = request.app.state.rooms.experiments
    return tests


@router.post("/v1/experiments/plan")
async def plan(request: Request, body: Design, _: Viewer) -> Plan:
    """Say how long a decision takes, without beginning anything."""
    return await _tests(request).plan(body)


@router.post("/v1/experiments", status_code=201)
async def create(request: Request, body: Design, person: Operator) -> Started:
    """Begin an experiment."""
    return Started(id=await _tests(request).create(body, person.name))


@router.get("/v1/experiments")
async def list_experiments(request: Request, _: Viewer) -> list[Summary]:
    """List the experiments, newest first."""
    return [Summary(**_summary(row)) for row in await _tests(request).experiments()]


@router.get("/v1/experiments/{id}")
async def show(request: Request, id: Id, _: Viewer) -> Report:
    """Show an experiment and its evidence."""
    return report(*await _tests(request).experiment(id))


@router.post("/v1/experiments/{id}/stop", status_code=204)
async def stop(request: Request, id: Id, body: Stop, person: Operator) -> None:
    """End an experiment; its robots go back to A."""
    await _tests(request).stop(id, body.reason, person.name)


@router.post("/v1/experiments/{id}/promote", status_code=201)
async def promote(request: Request, id: Id, body: Promotion, person: Operator) -> RolloutInfo:
    """Begin a rollout of a B that has won."""
    return await _tests(request).promote(id, body.target, person.name)


@router.get("/v1/experiments/{id}/log")
async def show_log(request: Request, id: Id, _: Viewer) -> PlainTextResponse:
    """Give the log from which every verdict can be computed again: JSON lines."""
    lines = await _tests(request).lines(id)
    return PlainTextResponse("".join(lines), media_type="application/x-ndjson")


def _summary(row: ExperimentRow) -> dict[str, Any]:
    names = ("id", "model", "a", "b", "state", "reason", "created_s", "created_by", "ended_s", "rollout")
    return {**{name: getattr(row, name) for name in names}, "unit": row.design["unit"]}


def report(row: ExperimentRow, robots: Sequence[ExperimentRobotRow], fates: Mapping[str, int]) -> Report:
    """Return an experiment as people see it."""
    figures, design = row.verdict.get("figures", {}), Design(**row.design)
    found = difference(design, figures)
    return Report(
        **_summary(row),
        design=design,
        plan=Plan(**row.plan),
        decision=row.verdict.get("decision", ""),
        message=row.verdict.get("message", ""),
        arms={name: _arm(version, figures.get(name)) for name, version in (("A", row.a), ("B", row.b))},
        difference=Difference(**found) if found is not None else None,
        faster=figures.get("faster"),
        waiting=fates.get(Fate.COUNTED, 0) - (sum(figures[name]["episodes"] for name in "AB") if figures else 0),
        apart={name: fates[name] for name in (Fate.MIXED, Fate.WRONG_ARM, Fate.LATE) if name in fates},
        home=bool(row.ended_s) and not any(robot.state == Robot.LEAVING for robot in robots),
        robots=[Member.model_validate(robot, from_attributes=True) for robot in robots],
    )


def _arm(version: str, figures: dict[str, Any] | None) -> ArmInfo:
    if figures is None:
        return ArmInfo(version=version, successes=0, episodes=0, rate=None, duration_s=None, unknown=0)
    return ArmInfo(
        version=version, successes=figures["successes"], episodes=figures["episodes"], rate=figures["rate"],
        duration_s=figures["latency_s"], unknown=figures["lost"],
    )  # fmt: skip
