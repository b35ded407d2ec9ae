# SPDX-License-Identifier: Apache-2.0
"""What an experiment has seen and what follows from it: which outcomes count, what the judge says, when it is over.

The judge's memory is its log in the database, one line a row, written in the same transaction as the mark of the outcomes that
were taken in. After a crash the judge is made again from these lines, so no outcome counts twice and none is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

from vla_evidence.ab.judge import ABJudge
from vla_evidence.assignment import arm
from vla_evidence.log.records import NewLines, to_json
from vla_evidence.log.replay import LoggedJudgement
from vla_evidence.sequential.intervals import confidence_sequence
from vla_evidence.tables import listed
from vla_evidence.verdict import Decision
from vla_fleet.experiments.design import DAY_S, Design, Unit
from vla_fleet.storage.tables import ExperimentLineRow, ExperimentRobotRow, ExperimentRow, OutcomeRow

_VERDICT_EVERY_S, _IDLE_VERDICT_EVERY_S = 60.0, 3600.0
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


class Judgement:
    """The judge of one experiment, as its log says; what is new waits in :attr:`log`."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.log = NewLines()
        self.lines = 0
        """Of the log in the database."""
        self._judgement = LoggedJudgement.resume(self._counted(lines), self.log, "the experiment's log")
        if not isinstance(self._judgement.judge, ABJudge):
            raise TypeError("an experiment's log is of an A/B judge")
        self._judge = self._judgement.judge
        self._last_verdict_s, self._news = 0.0, False

    def _counted(self, lines: Iterable[str]) -> Iterable[bytes]:
        for line in lines:
            self.lines += 1
            yield line.encode() + b"\n"

    def outcome(self, row: OutcomeRow, now_s: float) -> None:
        """Take an episode in that has ended. One whose outcome is not known fails at its deadline, as one in silence does."""
        name = f"{row.robot}/{row.episode_id}"
        self._judgement.choose(row.robot, name, now_s)
        if row.known:
            self._judgement.outcome(name, row.success, now_s, row.duration_s or None)
        self._news = True

    def verdict(self, now_s: float) -> dict[str, Any]:
        """Return the verdict. A final one is logged, and others at times: each minute, or each hour if nothing came."""
        every_s = _VERDICT_EVERY_S if self._news else _IDLE_VERDICT_EVERY_S
        found = self._judge.verdict()  # time passes for the judge only with what is logged, else a replay would differ
        if found.decision is not Decision.CONTINUE or now_s - self._last_verdict_s >= every_s:
            self._last_verdict_s, self._news = now_s, False
            found = self._judgement.verdict(now_s)
        return dict(to_json(found))

    def new_lines(self) -> list[ExperimentLineRow]:
        """Return what is to be added to the log in the database."""
        name = self._judge.experiment
        begin, lines = self.lines + 1, self.log.take()
        self.lines += len(lines)
        return [
            ExperimentLineRow(experiment=name, number=number, line=line.decode().rstrip("\n"))
            for number, line in enumerate(lines, begin)
        ]


def why_apart(experiment: ExperimentRow, robot: ExperimentRobotRow, row: OutcomeRow) -> str | None:
    """Return why an outcome does not count: mixed, wrong_arm, late, or outside (not of the experiment); None: it counts."""
    ended = experiment.state != State.RUNNING
    if not robot.since_s or row.time_s < robot.since_s or (ended and row.time_s > experiment.ended_s):
        return "outside"
    if robot.state == Robot.FAILED:
        return "outside"
    if ended:
        return "late"
    if row.mixed:
        return "mixed"
    versions = {"A": experiment.a, "B": experiment.b}
    drawn = robot.arm or "AB"[arm(experiment.id, row.robot, row.episode_id, 0.5)]
    as_drawn = row.version == versions[drawn] and row.arm == ("" if robot.arm else drawn)
    return None if as_drawn else "wrong_arm"


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
            codes = listed({robot.error_code or "no code" for robot in failed})
            return f"{len(failed)} of {len(members)} robots{arms} did not keep the version ({codes})"
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
