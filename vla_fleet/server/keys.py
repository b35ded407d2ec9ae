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
from vla_fleet.errors import InputError, RoleError, SignInError
from vla_fleet.robots.directory import hashed
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

    async def make(self, name: str, role: Role, who: str) -> str:
        """Return a new key; it is shown once."""
        key = f"vf_{secrets.token_urlsafe(32)}"
        async with self._database.begin() as session:
            if await session.scalar(select(KeyRow.name).where(KeyRow.name == name)):
                raise InputError("KEY_EXISTS", f"a key named {name!r} exists")
            session.add(KeyRow(key_hash=hashed(key), name=name, role=role.value, created_s=self._clock.now()))
            self._database.log(session, who, "key", name, role=role.value)
        return key

    async def exist(self) -> bool:
        """Whether there is any key."""
        async with self._database.begin() as session:
            return await session.scalar(select(KeyRow.name).limit(1)) is not None

    async def person(self, key: str) -> Person:
        """Return whose key this is."""
        async with self._database.begin() as session:
            row = await session.get(KeyRow, hashed(key))
        if row is None:
            raise SignInError("KEY_INVALID", "the API key is unknown")
        return Person(row.name, Role(row.role))


def bearer(authorization: str) -> str:
    """Return the secret of an ``Authorization: Bearer …`` header."""
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise SignInError("KEY_MISSING", "send the key as 'Authorization: Bearer KEY'")
    return secret.strip()


async def _person(request: Request) -> Person:
    keys: Keys = request.app.state.rooms.keys
    return await keys.person(bearer(request.headers.get("authorization", "")))


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
