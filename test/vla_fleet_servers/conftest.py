# SPDX-License-Identifier: Apache-2.0
"""Servers that the tests of a file share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.servers import Moto, Nats, Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def nats() -> Iterator[Nats]:
    with Nats() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[Moto]:
    with Moto() as server:
        yield server
