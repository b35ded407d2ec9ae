# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet migrate``: what a server has kept in its folder is copied to PostgreSQL and an object store."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Table, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from vla_fleet.clock import SystemClock
from vla_fleet.errors import ConflictError, FleetError, InputError
from vla_fleet.server.rooms import FILES_KEY, Settings, embedded, lock_folder, stores
from vla_fleet.storage.blobs import BlobStore
from vla_fleet.storage.database import Database, shared_secret
from vla_fleet.storage.tables import AdapterRow, Base, EpisodeRow, LeaseRow

_AT_ONCE = 1000
_CHUNK_BYTES = 1 << 20
_OF_SERVERS = LeaseRow.__tablename__
"""What servers that run have agreed on goes nowhere."""


@dataclass(frozen=True)
class Migrated:
    """What was copied."""

    rows: dict[str, int]
    """By table."""
    files: int
    """That the object store did not have yet, and has now; 0 without one."""


async def migrate(data: Path, database: str, blobs: str, tell: Callable[[str], None]) -> Migrated:
    """Copy a server's folder: files first, then all rows in one transaction. After a failure it can be run again.

    Args:
        data: folder of a server that does not run.
        database: URL of an empty PostgreSQL database.
        blobs: URL of an object store; empty: files stay in ``data``.
        tell: gets a line for each thing that begins.

    Raises:
        FleetError: DATA_UNUSABLE, DATA_IN_USE, DATABASE_URL, DATABASE_UNREACHABLE, DATABASE_NOT_EMPTY, BLOBS_URL,
            BLOBS_UNREACHABLE, BLOB_DIGEST (a file of the folder is damaged).
    """
    if not (data / "fleet.db").is_file():
        raise FleetError("DATA_UNUSABLE", f"{data}: is no server's folder; it has no fleet.db")
    lock, clock = lock_folder(data), SystemClock()
    source, target = Database(embedded(data), clock), Database(database, clock)
    try:
        if not target.shared:
            raise InputError("DATABASE_URL", "migrate leads to PostgreSQL; write postgresql://USER@HOST/NAME")
        await source.migrate()
        await target.migrate()
        await _check_empty(target)
        files = await _copy_files(data, blobs, source, tell) if blobs else 0
        rows = await _copy_rows(source, target, tell)
        key = data / FILES_KEY
        if key.exists():
            await shared_secret(target, FILES_KEY, key.read_bytes())
        return Migrated(rows, files)
    finally:
        await source.close()
        await target.close()
        os.close(lock)


def _tables() -> list[Table]:
    """Return the tables, each behind those that it refers to."""
    return [table for table in Base.metadata.sorted_tables if table.name != _OF_SERVERS]


async def _check_empty(target: Database) -> None:
    async with target.begin() as session:
        for table in _tables():
            if await session.scalar(select(func.count()).select_from(table)):
                message = f"table {table.name} has rows already; name an empty database, so that nothing is mixed"
                raise ConflictError("DATABASE_NOT_EMPTY", message)


async def _copy_rows(source: Database, target: Database, tell: Callable[[str], None]) -> dict[str, int]:
    counts: dict[str, int] = {}
    async with source.begin() as old, target.begin() as new:
        for table in _tables():
            tell(f"rows of {table.name}")
            counts[table.name] = await _copy_table(old, new, table)
            await _count_on(new, table)
    return counts


async def _copy_table(old: AsyncSession, new: AsyncSession, table: Table) -> int:
    count = 0
    rows = await old.stream(select(table).order_by(*table.primary_key))
    async for part in rows.mappings().partitions(_AT_ONCE):
        await new.execute(insert(table), [dict(row) for row in part])
        count += len(part)
    return count


async def _count_on(new: AsyncSession, table: Table) -> None:
    """Let new rows get numbers behind those that were copied."""
    column = table.autoincrement_column
    if column is None:
        return
    last = await new.scalar(select(func.max(column)))
    if last is not None:
        name = {"table": table.name, "column": column.name, "last": last}
        await new.execute(text("SELECT setval(pg_get_serial_sequence(:table, :column), :last)"), name)


async def _copy_files(data: Path, blobs: str, source: Database, tell: Callable[[str], None]) -> int:
    _, *old = stores(Settings(data=data, public_url=""))
    new_blobs, *new = stores(Settings(data=data, public_url="", blobs=blobs))
    tell("files of versions")
    copied = 0
    for path in sorted((data / "blobs" / "sha256").iterdir()):
        copied += await _copy_file(path, new_blobs, path.name)
    for sha256_of, here, there in zip((EpisodeRow.sha256, AdapterRow.sha256), old, new, strict=True):
        assert there.objects is not None
        tell(f"files of {here.root.name}")
        async with source.begin() as session:
            names = (await session.scalars(select(sha256_of))).all()
        for sha256 in names:
            if here.path(sha256).is_file():  # else somebody has taken it away, and the old server has none either
                copied += await _copy_file(here.path(sha256), there.objects, sha256)
    return copied


async def _copy_file(path: Path, store: BlobStore, sha256: str) -> int:
    """Copy a file unless it is there; its SHA-256 is checked on the way."""
    if await store.size(sha256) == path.stat().st_size:
        return 0
    await store.put(sha256, _pieces(path))
    return 1


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield piece
