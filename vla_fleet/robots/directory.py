# SPDX-License-Identifier: Apache-2.0
"""Which robots there are. A person makes a code for one robot; the robot trades it for a token, once."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from sqlalchemy import delete, select

from vla_fleet.clock import Clock
from vla_fleet.errors import InputError, MissingError, SignInError
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import CodeRow, RobotRow


def hashed(secret: str) -> str:
    """Return what is stored of a secret. It is random and long, so a plain hash is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Directory:
    """Enrols robots and finds them."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    async def make_code(self, robot: str, group: str, tags: Sequence[str], valid_s: float, who: str) -> str:
        """Return a code with which ``robot`` can enrol once (again: its old token ends) within ``valid_s`` seconds."""
        code = f"{secrets.token_hex(4)}-{secrets.token_hex(4)}"
        now = self._clock.now()
        async with self._database.begin() as session:
            await session.execute(delete(CodeRow).where(CodeRow.expires_s < now))
            row = CodeRow(code_hash=hashed(code), robot=robot, group=group, tags=list(tags), expires_s=now + valid_s)
            session.add(row)
            self._database.log(session, who, "enrolment_code", robot, group=group, tags=list(tags))
        return code

    async def enrol(self, code: str) -> tuple[str, str]:
        """Trade a code for the robot's name and token."""
        token, now = f"vr_{secrets.token_urlsafe(32)}", self._clock.now()
        async with self._database.begin() as session:
            found = await session.get(CodeRow, hashed(code))
            if found is None or found.expires_s < now:
                raise SignInError("CODE_INVALID", "the enrolment code is unknown, used or too old")
            await session.delete(found)
            robot = await session.get(RobotRow, found.robot)
            if robot is None:
                robot = RobotRow(name=found.robot, enrolled_s=now, status={})
                session.add(robot)
            robot.token_hash, robot.group, robot.tags = hashed(token), found.group, found.tags
            self._database.log(session, found.robot, "enrol", found.robot)
        return found.robot, token

    async def revoke(self, name: str, who: str) -> None:
        """End a robot's token; it can enrol again with a new code."""
        async with self._database.begin() as session:
            robot = await session.get(RobotRow, name)
            if robot is None:
                raise MissingError("ROBOT_NOT_FOUND", f"no robot {name!r} has enrolled")
            robot.token_hash = hashed(secrets.token_hex(32))
            self._database.log(session, who, "revoke_token", name)

    async def authenticate(self, token: str) -> str:
        """Return the name of the robot that has this token."""
        async with self._database.begin() as session:
            name = await session.scalar(select(RobotRow.name).where(RobotRow.token_hash == hashed(token)))
        if name is None:
            raise SignInError("TOKEN_INVALID", "the robot's token is unknown or was revoked; enrol it again")
        return str(name)

    async def robots(self) -> list[RobotRow]:
        """Return every robot, by name."""
        async with self._database.begin() as session:
            return list((await session.scalars(select(RobotRow).order_by(RobotRow.name))).all())

    async def robot(self, name: str) -> RobotRow:
        """Return one robot."""
        async with self._database.begin() as session:
            row = await session.get(RobotRow, name)
        if row is None:
            raise MissingError("ROBOT_NOT_FOUND", f"no robot {name!r} has enrolled")
        return row

    async def choose(self, names: Sequence[str], group: str, *, everyone: bool = False) -> list[str]:
        """Return the names of the robots that a request means; each name must exist, and somebody must be meant."""
        robots = await self.robots()
        known = {robot.name for robot in robots}
        if unknown := sorted(set(names) - known):
            raise MissingError("ROBOT_NOT_FOUND", f"no robot {unknown[0]!r} has enrolled")
        if not (names or group or everyone):
            raise InputError("NO_ROBOTS", "name robots, a group, or all of them")
        meant = [r.name for r in robots if everyone or r.name in names or (group and r.group == group)]
        if not meant:
            raise MissingError("NO_ROBOTS", f"no robot is in group {group!r}")
        return meant
