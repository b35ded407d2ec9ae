# SPDX-License-Identifier: Apache-2.0
"""Rollouts: where each stands, on what evidence, what is missing, and what a person may decide."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from vla_evidence.canary.config import Unit
from vla_evidence.sequential.intervals import confidence_sequence
from vla_fleet import protocol
from vla_fleet.errors import InputError, MissingError
from vla_fleet.page import evidence
from vla_fleet.page.access import Form, Operator, PageRoute, Viewer, may_order
from vla_fleet.page.paging import Number, cut
from vla_fleet.page.render import page
from vla_fleet.protocol import Id
from vla_fleet.rollouts.engine import State
from vla_fleet.rollouts.progress import progress
from vla_fleet.rollouts.rollouts import RolloutInfo
from vla_fleet.server.rooms import Rooms, rooms_of
from vla_fleet.steering.evidence import Course

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_ARMS = (("incumbent", "before"), ("canary", "new version"))


@router.get("/rollouts")
async def list_rollouts(request: Request, person: Viewer, number: Number = 1) -> Response:
    """List rollouts, newest first."""
    rooms = rooms_of(request)
    found = await rooms.shared.get("rollouts", rooms.rollouts.all)
    return page(request, "rollouts.html", rollouts=cut(found, number))


@router.get("/rollouts/{rollout}")
async def show_rollout(
    request: Request, rollout: Id, person: Viewer, standing: protocol.Word = "", number: Number = 1
) -> Response:
    """Show a rollout."""
    rooms = rooms_of(request)
    found = await _find(rooms, rollout)
    course = await rooms.shared.get(("rollout's course", rollout), lambda: rooms.rollouts.course(rollout))
    drawn = found.unit == Unit.EPISODE.value  # else episodes of a robot are alike, and make no interval
    robots = [robot for robot in found.robots if standing in ("", robot.standing)]
    return page(
        request, "rollout.html", r=found, actions=_actions(found) if may_order(person) else [],
        ended=State(found.state).ended, figures=_figures(found, course), progress=progress(found, course.settings),
        against=evidence.against(course.verdicts), drawn=drawn,
        rates=evidence.rates(course.verdicts, _ARMS, 0.95 if drawn else None),
        standings=sorted(Counter(robot.standing for robot in found.robots).items()), values={"standing": standing},
        robots=cut(robots, number),
    )  # fmt: skip


async def _find(rooms: Rooms, rollout: str) -> RolloutInfo:
    found: RolloutInfo = await rooms.shared.get(("rollout", rollout), lambda: rooms.rollouts.show(rollout))
    return found


def _figures(found: RolloutInfo, course: Course) -> list[dict[str, Any]]:
    """Return what each version did since the rollout began, as the judge counted last."""
    last = course.verdicts[-1]["verdict"] if course.verdicts else {}
    figures = (found.verdict or last).get("figures", {})
    rows = []
    for key, name in _ARMS:
        successes, episodes = figures.get(key, (0, 0))
        low, high = confidence_sequence(successes, episodes)
        rate = successes / episodes if episodes else None
        rows.append({"name": name, "successes": int(successes), "episodes": int(episodes), "rate": rate})
        rows[-1] |= {"low": float(low), "high": float(high)}
    return rows


# -- what a person decides --------------------------------------------------------------------------------------------------

_ACTIONS: dict[str, dict[str, Any]] = {
    "approve": {
        "label": "Approve", "style": "main", "reason": True, "title": "Let the next stage of {} begin?",
        "texts": ["It begins without the judge. The decision goes into the evidence log."],
    },
    "pause": {
        "label": "Pause", "style": "", "reason": False, "title": "Pause {}?",
        "texts": ["Robots get no new order, and no stage begins. The judge goes on, and harm is rolled back all the same."],
    },
    "resume": {"label": "Resume", "style": "main", "reason": False, "title": "Go on with {}?", "texts": []},
    "abort": {
        "label": "Abort", "style": "danger", "reason": True, "title": "Abort {}?",
        "texts": ["Every robot that has the version, or may get it, is ordered back at once to what it ran before."],
        "choices": [("keep", "Robots keep what they have committed.", "None goes back; draws of episodes end.")],
    },
}  # fmt: skip


def _actions(found: RolloutInfo) -> list[tuple[str, str, str]]:
    """Return name, label and style of what may be done now; the rollout itself decides when it is done."""
    state, names = State(found.state), []
    if state in (State.JUDGING, State.ASKING) and not found.paused and found.verdict.get("decision") != "ROLLBACK":
        names.append("approve")
    if not state.ended and state is not State.ROLLING_BACK:
        names += ["resume" if found.paused else "pause", "abort"]
    quiet = "approve" if state is not State.ASKING else ""  # nobody is asked: it is not what to do next
    return [(name, _ACTIONS[name]["label"], "" if name == quiet else _ACTIONS[name]["style"]) for name in names]


@router.get("/rollouts/{rollout}/{action}")
async def ask(request: Request, rollout: Id, action: Id, person: Operator) -> Response:
    """Ask before something is done to a rollout."""
    found, about = await rooms_of(request).rollouts.show(rollout), _about(action)
    what = f"{found.model} {found.version} to {found.target}, {found.state.lower().replace('_', ' ')}"
    stage = f"stage {found.stage + 1} of {len(found.stages)}: {found.stages[found.stage]['name']}"
    return page(
        request, "confirm.html", title=about["title"].format(rollout), texts=[f"{what}, {stage}.", *about["texts"]],
        choices=about.get("choices", []), fields=[], reason=about["reason"], button=about["label"],
        style=about["style"] or "main", back=f"/rollouts/{rollout}",
    )  # fmt: skip


@router.post("/rollouts/{rollout}/{action}")
async def steer(request: Request, rollout: Id, action: Id, person: Operator, form: Form) -> Response:
    """Pause, resume, approve or abort a rollout."""
    rooms, about, reason = rooms_of(request), _about(action), form.get("reason", "").strip()[:1000]
    if about["reason"] and not reason:
        raise InputError("INPUT_INVALID", "reason: say why; it goes into the log")
    more = {"keep": True} if action == "abort" and form.get("keep") else {}
    await getattr(rooms.rollouts, action)(rollout, person.name, reason, **more)
    rooms.shared.forget(("rollout", rollout), ("rollout's course", rollout), "rollouts")
    return RedirectResponse(f"/rollouts/{rollout}", 303)


def _about(action: str) -> dict[str, Any]:
    if action not in _ACTIONS:
        raise MissingError("NOT_FOUND", f"nothing is called {action!r} here")
    return _ACTIONS[action]
