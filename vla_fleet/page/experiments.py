# SPDX-License-Identifier: Apache-2.0
"""Experiments: two versions against each other, what was planned, and what was found so far."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from vla_evidence.sequential.intervals import confidence_sequence
from vla_fleet.experiments.design import Unit
from vla_fleet.experiments.evidence import State
from vla_fleet.page import evidence
from vla_fleet.page.access import Form, Operator, PageRoute, Viewer, may_order
from vla_fleet.page.paging import Number, cut
from vla_fleet.page.render import page
from vla_fleet.protocol import Id
from vla_fleet.server.experiments import Report, report
from vla_fleet.server.rooms import Rooms, rooms_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/experiments")
async def list_experiments(request: Request, person: Viewer, number: Number = 1) -> Response:
    """List experiments, newest first."""
    rooms = rooms_of(request)
    found = await rooms.shared.get("experiments", rooms.experiments.experiments)
    return page(request, "experiments.html", experiments=cut(found, number))


@router.get("/experiments/{id}")
async def show_experiment(request: Request, id: Id, person: Viewer, number: Number = 1) -> Response:
    """Show an experiment."""
    rooms = rooms_of(request)
    found = await rooms.shared.get(("experiment", id), lambda: _find(rooms, id))
    course = await rooms.shared.get(("experiment's course", id), lambda: rooms.experiments.course(id))
    drawn = found.design.unit is Unit.EPISODE  # else episodes of a robot are alike, and make no interval
    confidence = 1.0 - found.design.alpha / 2.0  # of each, so that both hold with 1 − α, as their difference does
    rates = evidence.rates(
        course.verdicts,
        (("A", f"A: {found.a}"), ("B", f"B: {found.b}")),
        confidence if drawn else None,
        found.created_s,
    )
    figures = course.verdicts[-1]["verdict"]["figures"] if course.verdicts else {}
    return page(
        request, "experiment.html", e=found, arms=_arms(found, confidence), confidence=confidence,
        rates=rates, drawn=drawn,
        actions=_actions(found) if may_order(person) else [], pairs=figures.get("pairs"),
        robots=cut(found.robots, number), running=found.state == State.RUNNING,
    )  # fmt: skip


async def _find(rooms: Rooms, id: str) -> Report:
    return report(*await rooms.experiments.experiment(id))


def _arms(found: Report, confidence: float) -> list[dict[str, Any]]:
    rows = []
    for name, arm in found.arms.items():
        low, high = confidence_sequence(arm.successes, arm.episodes, confidence)
        rows.append({"name": name, "of": arm, "low": float(low), "high": float(high)})
    return rows


# -- what a person decides --------------------------------------------------------------------------------------------------


def _actions(found: Report) -> list[tuple[str, str, str]]:
    """Return name, label and style of what may be done now; the experiment itself decides when it is done."""
    if found.state == State.RUNNING:
        return [("stop", "Stop", "danger")]
    return [("promote", "Promote B", "main")] if found.state == State.WIN_B and not found.rollout else []


@router.get("/experiments/{id}/stop")
async def ask_stop(request: Request, id: Id, person: Operator) -> Response:
    """Ask before an experiment ends."""
    found = await _find(rooms_of(request), id)
    texts = [
        f"{found.model} {found.a} against {found.b}. It ends without a winner, and its robots go back to {found.a}."
    ]
    return page(
        request, "confirm.html", title=f"Stop {id}?", texts=texts, choices=[], fields=[], reason=False, button="Stop",
        style="danger", back=f"/experiments/{id}",
    )  # fmt: skip


@router.post("/experiments/{id}/stop")
async def stop(request: Request, id: Id, person: Operator, form: Form) -> Response:
    """End an experiment."""
    rooms = rooms_of(request)
    await rooms.experiments.stop(id, form.get("reason", "").strip()[:1000], person.name)
    _forget(rooms, id)
    return RedirectResponse(f"/experiments/{id}", 303)


@router.get("/experiments/{id}/promote")
async def ask_promote(request: Request, id: Id, person: Operator) -> Response:
    """Ask before the winner is rolled out."""
    found = await _find(rooms_of(request), id)
    texts = [f"A rollout of {found.model} {found.b} begins, stage by stage."]
    whom = (
        f"group:{found.design.group}"
        if found.design.group
        else f"tag:{found.design.tag}"
        if found.design.tag
        else "all"
    )
    return page(
        request, "confirm.html", title=f"Promote {found.b}?", texts=texts, choices=[], reason=None, button="Promote B",
        fields=[("target", "To: all, group:NAME or tag:NAME", whom)], style="main", back=f"/experiments/{id}",
    )  # fmt: skip


@router.post("/experiments/{id}/promote")
async def promote(request: Request, id: Id, person: Operator, form: Form) -> Response:
    """Begin a rollout of the winner."""
    rooms = rooms_of(request)
    found = await rooms.experiments.promote(id, form.get("target", "").strip()[:70], person.name)
    _forget(rooms, id)
    return RedirectResponse(f"/rollouts/{found.id}", 303)


def _forget(rooms: Rooms, id: str) -> None:
    rooms.shared.forget(("experiment", id), ("experiment's course", id), "experiments", "rollouts")
