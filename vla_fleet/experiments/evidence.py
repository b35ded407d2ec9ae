# SPDX-License-Identifier: Apache-2.0
"""What an experiment has seen and what follows from it: which outcomes count, and when it is over."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from vla_evidence.assignment import arm
from vla_evidence.log.replay import LoggedJudgement
from vla_evidence.sequential.intervals import confidence_sequence
from vla_evidence.tables import listed
from vla_evidence.verdict import Decision
from vla_fleet.experiments.design import DAY_S, Design, Unit
from vla_fleet.storage.tables import ExperimentRobotRow, ExperimentRow, OutcomeRow

_LOPSIDED_CONFIDENCE = 0.999
_LOST_SHARE = 0.25
"""Of an arm's robots: the judge of robots compares nothing if more of them have no episode."""


class State(str, Enum):
    """How an experiment stands. All but RUNNING are ends."""

    RUNNING = "RUNNING"
    WIN_A = "WIN_A"
    WIN_B = "WIN_B"
    NO_DIFFERENCE = "NO_DIFFERENCE"
    """Everything that was planned is in, and no difference was shown; there may be one."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """It ended before that; the reason says why."""
    STOPPED = "STOPPED"
    """By a person."""


class Robot(str, Enum):
    """How a robot of an experiment stands."""

    JOINING = "JOINING"
    RUNNING = "RUNNING"
    FAILED = "FAILED"
    """It refused its version or rolled it back; it is compared no more."""
    LEAVING = "LEAVING"
    LEFT = "LEFT"


class Fate(str, Enum):
    """What an experiment made of an outcome."""

    COUNTED = "counted"
    MIXED = "mixed"
    WRONG_ARM = "wrong_arm"
    LATE = "late"
    """It came after the end."""
    OUTSIDE = "outside"
    """It is not of the experiment."""


def fate_of(experiment: ExperimentRow, robot: ExperimentRobotRow, row: OutcomeRow) -> Fate:
    """Say what an outcome is before the judge sees it."""
    ended = experiment.state != State.RUNNING
    if not robot.since_s or row.time_s < robot.since_s or (ended and row.time_s > experiment.ended_s):
        return Fate.OUTSIDE
    if robot.state == Robot.FAILED:
        return Fate.OUTSIDE
    if ended:
        return Fate.LATE
    if row.mixed:
        return Fate.MIXED
    versions = {"A": experiment.a, "B": experiment.b}
    drawn = robot.arm or "AB"[arm(experiment.id, row.robot, row.episode_id, 0.5)]
    as_drawn = row.version == versions[drawn] and row.arm == ("" if robot.arm else drawn)
    return Fate.COUNTED if as_drawn else Fate.WRONG_ARM


def take_in(judgement: LoggedJudgement, outcomes: Sequence[OutcomeRow], now_s: float) -> None:
    """Give the judge outcomes that count. An unknown one fails at its deadline."""
    for row in outcomes:
        name = f"{row.robot}/{row.episode_id}"
        judgement.choose(row.robot, name, now_s)
        if row.known:
            judgement.outcome(name, row.succeeded, now_s, row.duration_s or None)


def conclusion(
    experiment: ExperimentRow, design: Design, robots: Sequence[ExperimentRobotRow], now_s: float
) -> tuple[State, str] | None:
    """Return how the experiment ends, and why; None: it goes on. The rule was fixed when it was created."""
    verdict = experiment.verdict
    decision = Decision(verdict.get("decision", Decision.CONTINUE))
    message = str(verdict.get("message", ""))
    if decision is Decision.A_BETTER:
        return State.WIN_A, message
    spoilt = _spoilt(design, robots) or _lopsided(design, verdict.get("figures", {}))
    if decision is Decision.B_BETTER:
        lost = listed(r.robot for r in robots if r.arm == "B" and r.state == Robot.FAILED)
        if lost and not spoilt:
            spoilt = f"{lost}: drawn for B, and did not keep it; those that did are no random half any more"
        return (State.INCONCLUSIVE, f"{spoilt}; {message}") if spoilt else (State.WIN_B, message)
    if spoilt:
        return State.INCONCLUSIVE, spoilt
    if decision is Decision.NO_DIFFERENCE_SHOWN:
        return State.NO_DIFFERENCE, message
    if now_s >= experiment.created_s + design.max_days * DAY_S:
        return State.INCONCLUSIVE, f"{design.max_days:g} days are over; {message}".rstrip("; ")
    return None


def _spoilt(design: Design, robots: Sequence[ExperimentRobotRow]) -> str:
    """Say if too many robots have dropped out to compare what is left."""
    for name in ("A", "B") if design.unit is Unit.ROBOT else ("",):
        members = [robot for robot in robots if robot.arm == name]
        failed = [robot for robot in members if robot.state == Robot.FAILED]
        most = _LOST_SHARE * len(members) if name else len(members) - 1
        if members and len(failed) > most:
            arms = f" that were drawn for {name}" if name else ""
            reasons = listed({robot.detail for robot in failed})
            return f"{len(failed)} of {len(members)} robots{arms} did not keep the version ({reasons})"
    return ""


def _lopsided(design: Design, figures: dict[str, Any]) -> str:
    """Say if the arms' shares of episodes are not those that were drawn: then outcomes get lost, and of one arm more."""
    if design.unit is Unit.ROBOT or not figures:
        return ""
    a, b = figures["A"]["episodes"], figures["B"]["episodes"]
    low, high = confidence_sequence(b, a + b, _LOPSIDED_CONFIDENCE)
    if low <= 0.5 <= high:
        return ""
    return f"lopsided: {a} episodes of A and {b} of B were reported, though half of each were drawn: outcomes are lost"


def difference(design: Design, figures: dict[str, Any]) -> dict[str, float] | None:
    """Return B's success rate minus A's, with an interval that holds at every look (by episode); None before both are seen.

    The interval is made of two confidence sequences, each at half of α; like them it assumes rates that do not drift. By robot
    there is none: episodes of one robot are alike, and the randomisation test decides.
    """
    if not figures or figures["A"]["rate"] is None or figures["B"]["rate"] is None:
        return None
    found = {"difference": figures["B"]["rate"] - figures["A"]["rate"]}
    if design.unit is Unit.EPISODE:
        (low_a, high_a), (low_b, high_b) = (
            confidence_sequence(figures[n]["successes"], figures[n]["episodes"], 1.0 - design.alpha / 2.0) for n in "AB"
        )
        found |= {"low": float(low_b - high_a), "high": float(high_b - low_a)}
    return found
