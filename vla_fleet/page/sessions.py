# SPDX-License-Identifier: Apache-2.0
"""Who has signed in. A session has a secret of its own, ends by itself, at sign-out, and with the key that opened it."""

from __future__ import annotations

import secrets

from sqlalchemy import delete, select

from vla_fleet.clock import Clock
from vla_fleet.errors import SignInError
from vla_fleet.robots.directory import hashed
from vla_fleet.server.keys import Keys, Person, Role
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import KeyRow, SessionRow

VALID_S = 7 * 24 * 3600.0


class Sessions:
    """Opens, finds and ends sessions."""

    def __init__(self, database: Database, keys: Keys, clock: Clock) -> None:
        self._database, self._keys, self._clock = database, keys, clock

    async def open(self, key: str) -> str:
        """Trade an API key for a session's secret; raises as :meth:`Keys.person`."""
        person, secret, now = await self._keys.person(key), secrets.token_urlsafe(32), self._clock.now()
        async with self._database.begin() as session:
            await session.execute(delete(SessionRow).where(SessionRow.expires_s < now))
            session.add(SessionRow(secret_hash=hashed(secret), key_hash=hashed(key), expires_s=now + VALID_S))
            self._database.log(session, person.name, "sign_in", person.name)
        return secret

    async def person(self, secret: str) -> Person:
        """Return whose session this is.

        Raises:
            SignInError: SESSION_ENDED.
        """
        valid = SessionRow.secret_hash == hashed(secret), SessionRow.expires_s >= self._clock.now()
        query = select(KeyRow.name, KeyRow.role).join(SessionRow, SessionRow.key_hash == KeyRow.key_hash)
        async with self._database.begin() as session:
            found = (await session.execute(query.where(*valid, KeyRow.revoked_s.is_(None)))).one_or_none()
        if found is None:
            raise SignInError("SESSION_ENDED", "sign in again")
        return Person(found.name, Role(found.role))

    async def close(self, secret: str) -> None:
        """End a session."""
        async with self._database.begin() as session:
            await session.execute(delete(SessionRow).where(SessionRow.secret_hash == hashed(secret)))
