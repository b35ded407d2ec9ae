# SPDX-License-Identifier: Apache-2.0
"""Which data sets were built: so that the next one knows what is new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from vla_fleet.clock import Clock
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import DataSetRow


class DataSets:
    """The record of data sets. The data sets themselves are where they were built."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    async def add(self, fields: dict[str, Any], who: str) -> DataSetRow:
        """Keep that ``who`` has built a data set; ``fields`` are the others of its row."""
        async with self._database.begin() as session:
            row = DataSetRow(**fields, created_s=self._clock.now(), created_by=who)
            session.add(row)
            await session.flush()
            self._database.log(session, who, "data_set", f"{row.policy} {row.number}", lineage=row.lineage_sha256)
        return row

    async def list(self, policy: str, limit: int) -> Sequence[DataSetRow]:
        """Return data sets, the newest first; ``policy`` empty: of any."""
        query = select(DataSetRow).order_by(DataSetRow.number.desc()).limit(limit)
        async with self._database.begin() as session:
            return (await session.scalars(query.where(DataSetRow.policy == policy) if policy else query)).all()
