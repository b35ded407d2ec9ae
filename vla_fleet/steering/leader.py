# SPDX-License-Identifier: Apache-2.0
"""Which of several servers steers: the one that holds the lease. When it is silent for too long, another one takes it.

The lease spares work; it is not what keeps two servers from doing the same. A server that was suspended may wake up and go on
with a step whose lease has ended. That step changes nothing then: every step changes the row of its rollout or experiment under a
revision (``Engine.step``), and of two that change it the database refuses one.
"""

from __future__ import annotations

from sqlalchemy import or_, update
from sqlalchemy.dialects.postgresql import insert

from vla_fleet.clock import Clock
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import LeaseRow

LEASE_S = 10.0
"""A leader that was killed is followed within this time [s]."""
_NAME = "steering"


class Leader:
    """The part of one server in deciding who steers.

    Args:
        database: that the servers share; one that they cannot share needs no leader, and every server of it leads.
        clock: of this server. Where the servers' clocks differ by more than a lease, the one that is ahead leads.
        server: names this server among them.
    """

    def __init__(self, database: Database, clock: Clock, server: str) -> None:
        self._database, self._clock, self._server = database, clock, server
        self._renew_s = 0.0
        self._until_s = 0.0

    @property
    def leading(self) -> bool:
        """Whether this server holds the lease."""
        return not self._database.shared or self._clock.now() < self._until_s

    async def leads(self) -> bool:
        """Take the lease if it is free, or renew it; return whether this server has it."""
        now_s = self._clock.now()
        if not self._database.shared or (self.leading and now_s < self._renew_s):
            return True
        self._until_s = 0.0
        row = {"name": _NAME, "holder": self._server, "until_s": now_s + LEASE_S}
        free = or_(LeaseRow.holder == self._server, LeaseRow.until_s < now_s)
        take = insert(LeaseRow).values(row).on_conflict_do_update(index_elements=["name"], set_=row, where=free)
        async with self._database.begin() as session:
            taken = await session.scalar(take.returning(LeaseRow.holder)) is not None
        if taken:
            self._renew_s, self._until_s = now_s + LEASE_S / 3.0, now_s + LEASE_S
        return taken

    async def leave(self) -> None:
        """Let another server lead at once."""
        if self._database.shared and self.leading:
            async with self._database.begin() as session:
                mine = LeaseRow.name == _NAME, LeaseRow.holder == self._server
                await session.execute(update(LeaseRow).where(*mine).values(until_s=0.0))
        self._until_s = 0.0
