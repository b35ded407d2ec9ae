# SPDX-License-Identifier: Apache-2.0
"""The fleet as a whole: how many robots run what, which ones, and how that changed. The database counts, so there may be many."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import ColumnElement, Integer, Select, String, and_, case, cast, func, literal, or_, select, union_all

from vla_fleet import protocol
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import EventRow, RobotRow

Sort = Literal["name", "seen", "version"]


def _said(field: str) -> ColumnElement[str]:
    """Return what robots' newest statuses say; empty: nothing."""
    return func.coalesce(RobotRow.status[field].as_string(), "")


@dataclass(frozen=True)
class Filter:
    """Which robots are looked for."""

    words: str = ""
    """In its name, its group or one of its tags."""
    version: str | None = None
    """That acts; empty: none does."""
    state: str | None = None
    """Of its manager; empty: none was heard."""
    online: bool | None = None
    holding: bool = False
    error: bool = False


@dataclass
class Counts:
    """How many robots there are of each kind."""

    robots: int = 0
    online: int = 0
    holding: int = 0
    errors: int = 0
    """Whose status has an error code."""
    versions: Counter[str] = field(default_factory=Counter)
    """By the version that acts."""
    states: Counter[str] = field(default_factory=Counter)
    """By the state of the manager."""


@dataclass(frozen=True)
class Course:
    """How many robots ran each version, at moments from ``begin_s`` to ``end_s`` that lie equally far apart."""

    begin_s: float
    end_s: float
    versions: dict[str, list[int]]


class Overview:
    """Counts robots and finds them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def counts(self, online_since_s: float) -> Counts:
        """Count all robots; those seen since ``online_since_s`` are online."""
        kinds = (
            _said("active_version").label("version"), _said("state").label("state"),
            (RobotRow.last_seen_s >= online_since_s).label("online"), RobotRow.status["holding"].as_boolean().label("holding"),
            (_said("error_code") != "").label("error"),
        )  # fmt: skip
        found = Counts()
        async with self._database.begin() as session:
            for version, state, online, holding, error, number in await session.execute(_counted(select(*kinds))):
                found.robots += number
                found.online += number * bool(online)
                found.holding += number * bool(holding)
                found.errors += number * bool(error)
                found.versions[version] += number
                found.states[state] += number
        return found

    async def robots(
        self, wanted: Filter, online_since_s: float, sort: Sort, offset: int, limit: int
    ) -> tuple[int, list[RobotRow]]:
        """Return how many robots there are of the wanted kind, and some of them."""
        chosen = _chosen(wanted, online_since_s)
        orders: dict[str, Sequence[Any]] = {
            "name": (), "seen": (RobotRow.last_seen_s.desc(),), "version": (_said("active_version"),)
        }  # fmt: skip
        query = select(RobotRow).where(*chosen).order_by(*orders[sort], RobotRow.name).offset(offset).limit(limit)
        async with self._database.begin() as session:
            number = await session.scalar(select(func.count()).select_from(RobotRow).where(*chosen)) or 0
            return number, list((await session.scalars(query)).all())

    async def digests(self) -> dict[str, int]:
        """Return on how many robots each bundle acts."""
        async with self._database.begin() as session:
            found = await session.execute(_counted(select(_said("active_digest").label("digest"))))
            return {digest: number for digest, number in found}

    async def course(self, begin_s: float, end_s: float, steps: int) -> Course:
        """Return how many robots ran each version, from the record of what ran where (:mod:`vla_fleet.robots.history`).

        A robot that has not said anything since still runs what it ran. Times are those of the robots.
        """
        width = (end_s - begin_s) / steps
        async with self._database.begin() as session:
            rows = (await session.execute(_changes(begin_s, end_s, width))).all()
        changes: dict[str, list[int]] = {}
        for step, before, version, number in rows:
            for name, change in ((before, -number), (version, number)):
                if name:
                    changes.setdefault(name, [0] * (steps + 1))[min(int(step) + 1, steps)] += change
        return Course(begin_s, end_s, {name: list(itertools.accumulate(own)) for name, own in changes.items()})


def _counted(kinds: Select[Any]) -> Select[Any]:
    """Return how many rows there are of each kind."""
    each = kinds.subquery()
    return select(*each.c, func.count()).group_by(*each.c)


def _chosen(wanted: Filter, online_since_s: float) -> list[ColumnElement[bool]]:
    named = RobotRow.name, RobotRow.group, cast(RobotRow.tags, String)
    chosen: list[ColumnElement[bool]] = [
        or_(*(column.icontains(word, autoescape=True) for column in named)) for word in wanted.words.split()
    ]
    if wanted.version is not None:
        chosen.append(_said("active_version") == wanted.version)
    if wanted.state is not None:
        chosen.append(_said("state") == wanted.state)
    if wanted.online is not None:
        seen = RobotRow.last_seen_s >= online_since_s
        chosen.append(seen if wanted.online else ~seen)
    if wanted.holding:
        chosen.append(RobotRow.status["holding"].as_boolean())
    if wanted.error:
        chosen.append(_said("error_code") != "")
    return chosen


def _floor(number: ColumnElement[float]) -> ColumnElement[int]:
    """Return the whole part of what is not negative. A cast cuts off in SQLite and rounds in PostgreSQL."""
    whole = cast(number, Integer)
    return whole - case((whole > number, 1), else_=0)


def _changes(begin_s: float, end_s: float, width: float) -> Select[Any]:
    """Return (step, version before, version from then on, robots); step −1: what ran at the beginning.

    Robots come first, so that the index on robot and time finds the few events that matter among many.
    """
    mine = EventRow.robot == RobotRow.name, EventRow.to_state == protocol.ACTIVE
    before = select(EventRow.id).where(*mine, EventRow.time_s < begin_s).order_by(EventRow.time_s.desc()).limit(1)
    first = (
        select(EventRow.robot, EventRow.id, EventRow.version, literal(-1).label("step"))
        .select_from(RobotRow)
        .join(EventRow, EventRow.id == before.correlate(RobotRow).scalar_subquery())
    )
    during = (
        select(
            EventRow.robot, EventRow.id, EventRow.version, _floor((EventRow.time_s - begin_s) / width).label("step")
        )
        .select_from(RobotRow)
        .join(EventRow, and_(*mine, EventRow.time_s >= begin_s, EventRow.time_s <= end_s))
    )  # fmt: skip
    seen = union_all(first, during).subquery()
    earlier = func.lag(seen.c.version).over(partition_by=seen.c.robot, order_by=seen.c.id)
    each = select(seen.c.step, earlier.label("before"), seen.c.version).subquery()
    return select(each.c.step, each.c.before, each.c.version, func.count()).group_by(
        each.c.step, each.c.before, each.c.version
    )
