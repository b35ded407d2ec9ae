# SPDX-License-Identifier: Apache-2.0
"""Judges, whose memory is a log in the database, and what they made of each outcome.

The log's new lines and the marks of the outcomes that they rest on are written in one transaction. After a crash the judge is
made again from its log, so no outcome counts twice and none is forgotten.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_evidence.log.records import NewLines
from vla_evidence.log.replay import LoggedJudgement
from vla_fleet.storage.tables import JudgedOutcomeRow, JudgementLineRow, OutcomeRow

_AT_ONCE = 2000
"""Outcomes that one transaction takes in."""
_SETTLED_S = 60.0
"""So long after it was received, no outcome with a lower id can appear any more."""
_HISTORY = 5000
"""Outcomes, the newest ones, from which a fleet's rate and pace are read."""
_FEW = 1000
"""Robots; the newest outcomes of a whole larger fleet are enough of each."""
_LOOK_BACK_S, _SHORTEST_S = 14 * 86400.0, 3600.0
_Judgement = TypeVar("_Judgement", bound=LoggedJudgement)


class Row(Protocol):
    """What a rollout's and an experiment's row have in common."""

    id: str
    lines: int
    taken: int


@dataclass
class Judged(Generic[_Judgement]):
    """A judgement, with what it has added to its log since it was stored."""

    judgement: _Judgement
    new: NewLines
    lines: int
    """How many are stored."""


class Judges(Generic[_Judgement]):
    """Keeps judgements of one kind; any that is not here is made anew from its log."""

    def __init__(self, kind: type[_Judgement]) -> None:
        self._kind = kind
        self._known: dict[str, Judged[_Judgement]] = {}

    async def open(self, session: AsyncSession, row: Row) -> Judged[_Judgement]:
        """Return a judgement as the stored log leaves it."""
        judged = self._known.get(row.id)
        if judged is None or judged.lines != row.lines:
            lines, new = [line.encode() for line in await log_lines(session, row.id)], NewLines()
            judgement = await asyncio.to_thread(self._kind.resume, lines, new, row.id)
            judged = self._known[row.id] = Judged(judgement, new, len(lines))
        return judged

    def store(self, session: AsyncSession, row: Row, judged: Judged[_Judgement]) -> None:
        """Append what the judge has added; the caller commits it or calls :meth:`forget`."""
        for line in judged.new.take():
            append(session, row, line)
        judged.lines = row.lines

    def forget(self, name: str) -> None:
        """Drop a judgement that has ended, or that may know more than its log."""
        self._known.pop(name, None)


def append(session: AsyncSession, row: Row, line: bytes) -> None:
    """Append a line to the log of a judgement."""
    session.add(JudgementLineRow(judgement=row.id, number=row.lines, line=line.decode()))
    row.lines += 1


async def log_lines(session: AsyncSession, name: str) -> list[str]:
    """Return the log, for ``vla-evidence replay``."""
    query = select(JudgementLineRow.line).where(JudgementLineRow.judgement == name)
    return list(await session.scalars(query.order_by(JudgementLineRow.number)))


@dataclass(frozen=True)
class Course:
    """How the evidence of a judgement came to be what it is."""

    settings: dict[str, Any]
    """Of the judge."""
    verdicts: list[dict[str, Any]]
    """Records (:mod:`vla_evidence.log.records`) at equal distances in the log, with the last one."""


async def course(session: AsyncSession, name: str, most: int) -> Course:
    """Return at most ``most`` verdicts of a log, without reading all of it."""
    own = JudgementLineRow.judgement == name
    header = await session.scalar(select(JudgementLineRow.line).where(own, JudgementLineRow.number == 0))
    rank = func.row_number().over(order_by=JudgementLineRow.number).label("rank")
    verdicts = own, JudgementLineRow.line.startswith('{"record": "verdict"', autoescape=True)
    lines = select(JudgementLineRow.line, rank, func.count().over().label("number")).where(*verdicts).subquery()
    chosen = (lines.c.number - lines.c.rank) % ((lines.c.number - 1) // most + 1) == 0
    found = await session.scalars(select(lines.c.line).where(chosen).order_by(lines.c.rank))
    return Course(json.loads(header or "{}").get("settings", {}), [json.loads(line) for line in found])


# -- outcomes ---------------------------------------------------------------------------------------------------------------


async def newest(session: AsyncSession) -> int:
    """Return the id of the newest outcome. Read before orders are, so that what came before an answer is known with it."""
    return await session.scalar(select(func.max(OutcomeRow.id))) or 0


async def waiting(session: AsyncSession, row: Row, robots: Select[Any], horizon: int) -> Sequence[OutcomeRow]:
    """Return outcomes of these robots up to an id that were not looked at, oldest first."""
    seen = select(JudgedOutcomeRow.outcome).where(
        JudgedOutcomeRow.judgement == row.id, JudgedOutcomeRow.outcome == OutcomeRow.id
    )
    between = OutcomeRow.id > row.taken, OutcomeRow.id <= horizon
    query = select(OutcomeRow).where(*between, OutcomeRow.robot.in_(robots), ~seen.exists())
    return (await session.scalars(query.order_by(OutcomeRow.id).limit(_AT_ONCE))).all()


async def note(
    session: AsyncSession, row: Row, outcomes: Sequence[OutcomeRow], fates: Sequence[str], horizon: int, now_s: float
) -> None:
    """Note what became of outcomes, and up to which every one has been looked at, also those of other robots."""
    session.add_all(
        JudgedOutcomeRow(judgement=row.id, outcome=outcome.id, fate=fate)
        for outcome, fate in zip(outcomes, fates, strict=True)
    )
    looked_at = outcomes[-1].id if len(outcomes) == _AT_ONCE else horizon
    between = OutcomeRow.id > row.taken, OutcomeRow.id <= looked_at
    settled = select(func.max(OutcomeRow.id)).where(*between, OutcomeRow.received_s < now_s - _SETTLED_S)
    row.taken = await session.scalar(settled) or row.taken


async def counts(session: AsyncSession, name: str) -> dict[str, int]:
    """Return how many outcomes had each fate."""
    query = select(JudgedOutcomeRow.fate, func.count()).where(JudgedOutcomeRow.judgement == name)
    return {fate: number for fate, number in await session.execute(query.group_by(JudgedOutcomeRow.fate))}


# -- before -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """What robots did lately: ``by_robot`` (successes, episodes), and how long episodes took [s]."""

    by_robot: dict[str, tuple[int, int]]
    latencies_s: list[float]
    per_hour: float | None
    """Episodes that a robot does an hour; None: too few to say."""

    @property
    def successes(self) -> int:
        """Of all."""
        return sum(successes for successes, _ in self.by_robot.values())

    @property
    def episodes(self) -> int:
        """Of all."""
        return sum(episodes for _, episodes in self.by_robot.values())


async def history(session: AsyncSession, versions: Mapping[str, str], now_s: float) -> History:
    """Return what robots did with these versions (by robot) in two weeks: the newest outcomes."""
    lately = OutcomeRow.time_s > now_s - _LOOK_BACK_S, OutcomeRow.known, ~OutcomeRow.mixed
    query = select(OutcomeRow).where(OutcomeRow.version.in_(set(versions.values())), *lately)
    if len(versions) <= _FEW:
        query = query.where(OutcomeRow.robot.in_(versions))
    rows = await session.scalars(query.order_by(OutcomeRow.id.desc()).limit(_HISTORY))
    own = [row for row in rows if row.version == versions.get(row.robot)]
    episodes, successes = Counter(row.robot for row in own), Counter(row.robot for row in own if row.succeeded)
    by_robot = {robot: (successes[robot], number) for robot, number in episodes.items()}
    hours = max(now_s - min((row.time_s for row in own), default=now_s), _SHORTEST_S) / 3600.0
    per_hour = len(own) / hours / len(versions) if own else None
    return History(by_robot, [row.duration_s for row in own if row.duration_s > 0.0], per_hour)
