# SPDX-License-Identifier: Apache-2.0
"""Which robots there are. A person makes a code for one robot; the robot trades it for a token, once."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet.clock import Clock
from vla_fleet.errors import InputError, MissingError, SignInError
from vla_fleet.robots.commands import topic
from vla_fleet.storage.batches import Batches, Work, each
from vla_fleet.storage.bus import Bus
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import CodeRow, RobotRow


def hashed(secret: str) -> str:
    """Return what is stored of a secret. It is random and long, so a plain hash is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _token() -> str:
    return f"vr_{secrets.token_urlsafe(32)}"


def _give(robot: RobotRow, token: str) -> None:
    """Let ``token`` be the robot's only one."""
    robot.token_hash, robot.next_token_hash, robot.rotate = hashed(token), None, False


async def _holders(session: AsyncSession, digests: Sequence[str]) -> list[tuple[str, bool]]:
    """Return of each hashed token which robot has it, and whether it is not the one to come; an empty name: none has."""
    found: dict[str | None, tuple[str, bool]] = {}
    columns = RobotRow.name, RobotRow.token_hash, RobotRow.next_token_hash
    holds = or_(RobotRow.token_hash.in_(digests), RobotRow.next_token_hash.in_(digests))
    for name, current, given in await session.execute(select(*columns).where(holds)):
        found |= {given: (name, False), current: (name, True)}
    return [found.get(digest, ("", False)) for digest in digests]


async def _tokens(session: AsyncSession, names: Sequence[str]) -> list[tuple[str, str | None, bool]]:
    """Return of each robot its token's hash, that of the one to come, and whether it is to get one."""
    columns = RobotRow.name, RobotRow.token_hash, RobotRow.next_token_hash, RobotRow.rotate
    rows = await session.execute(select(*columns).where(RobotRow.name.in_(names)))
    found = {name: (current, given, rotate) for name, current, given, rotate in rows}
    return [found[name] for name in names]


class Directory:
    """Enrols robots, finds them, and knows their tokens."""

    def __init__(self, database: Database, bus: Bus, clock: Clock) -> None:
        self._database, self._bus, self._clock = database, bus, clock
        self._holders, self._tokens = Batches(database, _holders), Batches(database, _tokens)
        # of many that come at once: with a transaction each they wait for each other's flushes, SQLite's until they give up
        self._enrolments: Batches[Work[Any], Any] = Batches(database, each)

    async def make_code(self, robot: str, group: str, tags: Sequence[str], valid_s: float, who: str) -> str:
        """Return a code with which ``robot`` can enrol once (again: its old token ends) within ``valid_s`` seconds."""
        code = f"{secrets.token_hex(4)}-{secrets.token_hex(4)}"
        now = self._clock.now()

        async def work(session: AsyncSession) -> None:
            await session.execute(delete(CodeRow).where(CodeRow.expires_s < now))
            row = CodeRow(code_hash=hashed(code), robot=robot, group=group, tags=list(tags), expires_s=now + valid_s)
            session.add(row)
            self._database.log(session, who, "enrolment_code", robot, group=group, tags=list(tags))

        await self._enrolments.do(work)
        return code

    async def enrol(self, code: str) -> tuple[str, str]:
        """Trade a code for the robot's name and token."""
        token, now = _token(), self._clock.now()

        async def work(session: AsyncSession) -> str:
            # one statement, so that of two who send a code at the same moment one gets nothing
            used = delete(CodeRow).where(CodeRow.code_hash == hashed(code), CodeRow.expires_s >= now).returning(CodeRow)
            found = await session.scalar(used)
            if found is None:
                return ""
            robot = await session.get(RobotRow, found.robot)
            if robot is None:
                robot = RobotRow(name=found.robot, enrolled_s=now, status={})
                session.add(robot)
            robot.group, robot.tags = found.group, found.tags
            _give(robot, token)
            robot.revoked = False
            self._database.log(session, found.robot, "enrol", found.robot)
            return found.robot

        name: str = await self._enrolments.do(work)
        if not name:
            raise SignInError("CODE_INVALID", "the enrolment code is unknown, used or too old")
        await self._bus.publish(topic(name))  # a line with the old token ends
        return name, token

    async def revoke(self, name: str, who: str) -> None:
        """End a robot's token and its line; it can enrol again with a new code."""
        async with self._database.begin() as session:
            robot = await session.get(RobotRow, name)
            if robot is None:
                raise MissingError("ROBOT_NOT_FOUND", f"no robot {name!r} has enrolled")
            _give(robot, _token())  # nobody knows it
            robot.revoked = True
            self._database.log(session, who, "revoke_token", name)
        await self._bus.publish(topic(name))

    # -- tokens -------------------------------------------------------------------------------------------------------------

    async def rotate(self, names: Sequence[str], who: str) -> None:
        """Let robots trade their tokens for new ones, those that are connected now, the others when they come."""
        async with self._database.begin() as session:
            for name in names:
                (await session.get_one(RobotRow, name)).rotate = True
                self._database.log(session, who, "rotate_token", name)
        for name in names:
            await self._bus.publish(topic(name))

    async def new_token(self, name: str) -> str:
        """Return a new token if the robot is to get one, else nothing. The old one ends when the new one is used."""
        token = _token()
        async with self._database.begin() as session:
            robot = await session.get_one(RobotRow, name)
            if not robot.rotate:
                return ""
            robot.next_token_hash = hashed(token)
        return token

    async def authenticate(self, token: str) -> str:
        """Return the name of the robot that has this token; the first use of a new one ends the one before."""
        digest = hashed(token)
        name, current = await self._holders.do(digest)
        if not name:
            raise SignInError("TOKEN_INVALID", "the robot's token is unknown or was revoked; enrol the robot again")
        if not current:
            await self._trade(name, token)
        return name

    async def _trade(self, name: str, token: str) -> None:
        """Let a new token that was just used be the robot's only one."""
        async with self._database.begin() as session:
            robot = await session.get_one(RobotRow, name)
            if robot.next_token_hash == hashed(token):  # it may have been revoked, or traded on another line
                _give(robot, token)
                self._database.log(session, name, "token_rotated", name)

    async def line_ends(self, name: str, token: str) -> str:
        """Return why a line that was opened with ``token`` must end; empty: it need not."""
        holds, given, rotate = await self._tokens.do(name)
        if hashed(token) not in (holds, given):
            return "TOKEN_INVALID"
        return "TOKEN_ROTATES" if rotate and given is None else ""

    # -- looking ------------------------------------------------------------------------------------------------------------

    async def robots(self, after: str = "", limit: int | None = None) -> list[RobotRow]:
        """Return robots by name: those after ``after``, and at most ``limit``."""
        query = select(RobotRow).where(RobotRow.name > after).order_by(RobotRow.name).limit(limit)
        async with self._database.begin() as session:
            return list((await session.scalars(query)).all())

    async def robot(self, name: str) -> RobotRow:
        """Return one robot."""
        async with self._database.begin() as session:
            row = await session.get(RobotRow, name)
        if row is None:
            raise MissingError("ROBOT_NOT_FOUND", f"no robot {name!r} has enrolled")
        return row

    async def choose(self, names: Sequence[str], group: str, *, everyone: bool = False) -> list[str]:
        """Return the names of the robots that a request means; each name must exist, and somebody must be meant."""
        async with self._database.begin() as session:
            groups = dict((await session.execute(select(RobotRow.name, RobotRow.group).order_by(RobotRow.name))).all())
        wanted = set(names)
        if unknown := sorted(wanted - groups.keys()):
            raise MissingError("ROBOT_NOT_FOUND", f"no robot {unknown[0]!r} has enrolled")
        if not (names or group or everyone):
            raise InputError("NO_ROBOTS", "name robots, a group, or all of them")
        meant = [name for name, own in groups.items() if everyone or name in wanted or (group and own == group)]
        if not meant:
            raise MissingError("NO_ROBOTS", f"no robot is in group {group!r}" if group else "no robot has enrolled")
        return meant
