# SPDX-License-Identifier: Apache-2.0
"""What two servers do at the same moment on one PostgreSQL has one effect; one of them leads."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select
from support.fleet_app import ManualClock
from support.servers import Postgres

from vla_fleet import protocol
from vla_fleet.clock import SystemClock
from vla_fleet.robots.commands import Commands
from vla_fleet.robots.inbox import Inbox
from vla_fleet.rollouts.settings import RolloutRequest
from vla_fleet.server.rooms import Rooms, Settings
from vla_fleet.steering.leader import LEASE_S, Leader
from vla_fleet.storage.bus import LocalBus
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import Base, CommandRow, EventRow, JudgementLineRow, LogRow, RobotRow, VersionRow

OUTBOX = "outbox-1"


async def two(url: str, work: Callable[[Database, Database], Awaitable[None]]) -> None:
    """Do something with two servers' databases, which are one."""
    one, other = Database(url, SystemClock()), Database(url, SystemClock())
    try:
        await asyncio.gather(one.migrate(), other.migrate())
        await work(one, other)
    finally:
        await one.close()
        await other.close()


async def enrol(database: Database, *names: str, **fields: Any) -> None:
    async with database.begin() as session:
        session.add_all(
            RobotRow(name=name, token_hash=name, group="default", tags=[], enrolled_s=0.0, outbox_id=OUTBOX, **fields)
            for name in names
        )


def test_two_servers_that_start_at_once_make_the_tables_that_the_sources_name(postgres: Postgres) -> None:
    async def work(database: Database, _: Database) -> None:
        async with database.engine.begin() as connection:
            differences = await connection.run_sync(
                lambda sync: compare_metadata(MigrationContext.configure(sync), Base.metadata)
            )
        assert not differences

    asyncio.run(two(postgres.url("tables"), work))


def test_one_server_leads_and_another_follows_it_when_it_is_silent_or_leaves(postgres: Postgres) -> None:
    async def work(one: Database, other: Database) -> None:
        clock = ManualClock()
        first, second = Leader(one, clock, "first"), Leader(other, clock, "second")
        assert sorted(await asyncio.gather(first.leads(), second.leads())) == [False, True]
        leader, follower = (first, second) if first.leading else (second, first)
        for _ in range(10):
            await clock.advance(LEASE_S / 2)
            assert (await leader.leads(), await follower.leads()) == (True, False), "while it goes on"
        await clock.advance(LEASE_S + 0.1)
        assert not leader.leading and await follower.leads() and not await leader.leads(), "after its silence"
        await follower.leave()
        assert await leader.leads() and not await follower.leads(), "at once"

    asyncio.run(two(postgres.url("lease"), work))


def test_what_a_robot_says_on_two_lines_at_once_is_stored_once_and_what_an_old_outbox_says_is_not(
    postgres: Postgres,
) -> None:
    async def work(one: Database, other: Database) -> None:
        await enrol(one, "arm")
        clock = SystemClock()
        inboxes = [Inbox(database, Commands(database, LocalBus(), clock), clock) for database in (one, other)]
        events = [
            protocol.Event(seq=number, time_s=1.0, from_state="A", to_state="B", update_id=f"u-{number}")
            for number in range(1, 41)
        ]
        for begin in range(0, 40, 4):
            said = events[begin : begin + 4]
            assert await asyncio.gather(*(inbox.news("arm", OUTBOX, said) for inbox in inboxes)) == [begin + 4] * 2
        assert await inboxes[0].news("arm", "an older one", [events[0].model_copy(update={"seq": 99})]) == 0
        async with one.begin() as session:
            stored = list(await session.scalars(select(EventRow.update_id).order_by(EventRow.id)))
            assert stored == [event.update_id for event in events]
            assert (await session.get_one(RobotRow, "arm")).outbox_seq == 40

    asyncio.run(two(postgres.url("lines"), work))


def test_two_servers_that_step_the_same_rollout_at_once_give_each_order_once(
    tmp_path: Path, postgres: Postgres
) -> None:
    """As when a leader was suspended, has lost its lease, and wakes up in the middle of a step."""
    names, url = [f"arm_{number}" for number in range(6)], postgres.url("fence")
    about = {"state": "IDLE", "committed_version": "1.0.0", "committed_digest": "a" * 64, "active_digest": "a" * 64}

    async def work(database: Database, _: Database) -> None:
        rooms = [Rooms(Settings(data=tmp_path / name, public_url="http://fleet", database=url)) for name in "ab"]
        await enrol(database, *names, status=about, last_seen_s=SystemClock().now())
        async with database.begin() as session:
            session.add_all(
                VersionRow(
                    name="pick", version=version, digest=digest * 64, manifest="{}", size_bytes=1, published_s=0.0,
                    published_by="ada",
                )
                for version, digest in (("1.0.0", "a"), ("1.1.0", "b"))
            )  # fmt: skip
        stages = [{"name": "full", "share": 1.0}]
        request = RolloutRequest.model_validate({"model": "pick@1.1.0", "target": "all", "stages": stages})
        rollout = await rooms[0].rollouts.create(request, "ada")
        for _ in range(4):
            await asyncio.gather(*(room.rollouts.step() for room in rooms))
        await asyncio.gather(
            *(room.rollouts.pause(rollout.id, "ada") for room in rooms), return_exceptions=True
        )  # a person at each
        async with database.begin() as session:
            orders = Counter(await session.scalars(select(CommandRow.robot)))
            lines = list(await session.scalars(select(JudgementLineRow.number)))
            actions = Counter(await session.scalars(select(LogRow.action).where(LogRow.subject == rollout.id)))
        assert orders == dict.fromkeys(names, 1)
        assert sorted(lines) == list(range(len(lines)))
        assert actions["rollout.create"] == actions["rollout.pause"] == 1
        for room in rooms:
            await room.database.close()

    asyncio.run(two(url, work))
