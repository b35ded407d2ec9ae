# SPDX-License-Identifier: Apache-2.0
"""A plugin that lets tests of the fleet server run on PostgreSQL: ``pytest -p support.on_postgres test/vla_fleet/…``.

A server's folder stands for its database, so a server that a test starts again in the same folder finds what it knew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.servers import Postgres
from vla_fleet.server import rooms


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL for all tests; each server has a database of its own."""
    with Postgres() as server:
        yield server


@pytest.fixture(autouse=True, scope="session")
def embedded_database_is_postgres(postgres: Postgres) -> Iterator[None]:
    """Give PostgreSQL to servers in this process that ask for no other database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms, "embedded", lambda data: postgres.url(_name(data)))
        yield


def _name(data: Path) -> str:
    return hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:16]
