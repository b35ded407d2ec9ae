# SPDX-License-Identifier: Apache-2.0
"""API keys of people and programs, and what their roles allow."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import select

from vla_fleet.clock import Clock
from vla_fleet.errors import ConflictError, MissingError, RoleError, SignInError
from vla_fleet.robots.directory import hashed
from vla_fleet.server.limits import refuse
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import KeyRow


class Role(str, Enum):
    """What a key may do; everybody may look."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    """May order robots about: deploy, roll back, roll out."""
    PUBLISHER = "publisher"
    """May publish versions and move aliases."""
    ADMIN = "admin"
    """May do everything, and enrol robots and make keys."""


@dataclass(frozen=True)
class Person:
    """Who makes a request."""

    name: str
    role: Role


class Keys:
    """Makes and knows API keys."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    async def make(self, name: str, role: Role, who: str, keep: Callable[[str], None] = lambda key: None) -> str:
        """Return a new key; it is shown once. ``keep`` gets it before it is valid, so that a crash loses no valid one."""
        key = f"vf_{secrets.token_urlsafe(32)}"
        async with self._database.begin() as session:
            if await session.scalar(select(KeyRow.name).where(KeyRow.name == name)):
                raise ConflictError("KEY_EXISTS", f"a key named {name!r} exists, or did; choose another name")
            now = self._clock.now()
            session.add(KeyRow(key_hash=hashed(key), name=name, role=role.value, created_s=now, created_by=who))
            self._database.log(session, who, "key", name, role=role.value)
            keep(key)
        return key

    async def exist(self) -> bool:
        """Whether there is any key."""
        async with self._database.begin() as session:
            return await session.scalar(select(KeyRow.name).limit(1)) is not None

    async def all(self) -> list[KeyRow]:
        """Return every key that was made, also revoked ones."""
        async with self._database.begin() as session:
            return list((await session.scalars(select(KeyRow).order_by(KeyRow.name))).all())

    async def revoke(self, name: str, who: str) -> None:
        """End a key. Its name stays taken, because the log knows it.

        Raises:
            FleetError: KEY_NOT_FOUND; LAST_ADMIN: nobody could make keys any more.
        """
        async with self._database.begin() as session:
            valid = (await session.scalars(select(KeyRow).where(KeyRow.revoked_s.is_(None)).with_for_update())).all()
            row = next((row for row in valid if row.name == name), None)
            if row is None:
                raise MissingError("KEY_NOT_FOUND", f"there is no key {name!r}, or it is revoked")
            if row.role == Role.ADMIN.value and sum(other.role == row.role for other in valid) == 1:
                raise ConflictError("LAST_ADMIN", f"{name} is the last admin's key; make another one first")
            row.revoked_s = self._clock.now()
            self._database.log(session, who, "revoke_key", name)

    async def person(self, key: str) -> Person:
        """Return whose key this is."""
        async with self._database.begin() as session:
            row = await session.get(KeyRow, hashed(key))
        if row is None or row.revoked_s is not None:
            raise SignInError("KEY_INVALID", "the API key is unknown or was revoked; check VLA_FLEET_KEY")
        return Person(row.name, Role(row.role))


def bearer(authorization: str) -> str:
    """Return the secret of an ``Authorization: Bearer …`` header."""
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise SignInError("KEY_MISSING", "set VLA_FLEET_KEY, or send the key as 'Authorization: Bearer KEY'")
    return secret.strip()


async def person_of(request: Request, key: str) -> Person:
    """Return whose key came with a request, and count the request against the key's limit."""
    rooms = request.app.state.rooms
    person: Person = await rooms.keys.person(key)
    request.state.who = person.name  # for the request log
    refuse(f"requests with the key of {person.name}", rooms.key_requests.take(person.name))
    return person


async def _person(request: Request) -> Person:
    return await person_of(request, bearer(request.headers.get("authorization", "")))


def _allowed(*roles: Role) -> Callable[[Person], Person]:
    def check(person: Annotated[Person, Depends(_person)]) -> Person:
        if person.role not in (Role.ADMIN, *roles):
            needed = " or ".join(role.value for role in (*roles, Role.ADMIN))
            raise RoleError("ROLE_REQUIRED", f"{person.name} is {person.role.value}; this needs {needed}")
        return person

    return check


Viewer = Annotated[Person, Depends(_allowed(*Role))]
Operator = Annotated[Person, Depends(_allowed(Role.OPERATOR))]
Publisher = Annotated[Person, Depends(_allowed(Role.PUBLISHER))]
Admin = Annotated[Person, Depends(_allowed())]
