# SPDX-License-Identifier: Apache-2.0
"""API keys of people and programs, and what their roles allow."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

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
            now = self._clock.now()
            session.add(KeyRow(key_hash=hashed(key), name=name, role=role.value, created_s=now, created_by=who))
            try:
                await session.flush()
            except IntegrityError as e:
                text = f"a key named {name!r} exists, or did; choose another name"
                raise ConflictError("KEY_EXISTS", text) from e
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
            # the write comes first: from then on nobody else writes (SQLite), and what is read still holds at the end
            valid = KeyRow.revoked_s.is_(None)
            ended = update(KeyRow).where(KeyRow.name == name, valid).values(revoked_s=self._clock.now())
            role = await session.scalar(ended.returning(KeyRow.role))
            if role is None:
                raise MissingError("KEY_NOT_FOUND", f"there is no key {name!r}, or it is revoked")
            admins = select(KeyRow.name).where(KeyRow.role == Role.ADMIN.value, valid).with_for_update()
            if role == Role.ADMIN.value and not (await session.scalars(admins)).all():
                raise ConflictError("LAST_ADMIN", f"{name} is the last admin's key; make another one first")
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
