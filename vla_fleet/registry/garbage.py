# SPDX-License-Identifier: Apache-2.0
"""Garbage collection: blobs that no version needs any more. What a robot holds, or may go back to, stays whatever is retired."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from vla_checkpoint import Manifest
from vla_fleet.clock import Clock
from vla_fleet.registry.deltas import needed_deltas
from vla_fleet.storage.blobs import BlobStore
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import AliasRow, BlobRow, CommandRow, DeltaRow, RobotRow, VersionRow

GRACE_S = 24 * 3600.0
"""A blob that somebody sent or asked for less than this ago may belong to a version that is about to be published."""

_HELD = ("committed", "previous", "trial", "active")


@dataclass(frozen=True)
class Collected:
    """What a collection removed, or would remove."""

    blobs: int
    size_bytes: int
    held: tuple[str, ...]
    """Retired versions that stay, because a robot or an open command needs them."""


class GarbageCollector:
    """Removes blobs. One runs at a time, in the transaction that decides."""

    def __init__(self, database: Database, blobs: BlobStore, clock: Clock) -> None:
        self._database, self._blobs, self._clock = database, blobs, clock

    async def collect(self, who: str, *, dry_run: bool) -> Collected:
        """Remove what nobody needs; with ``dry_run`` only say what that is.

        A publisher notes its blobs (``registry.touch``) before it checks that they are there. So either the note is seen here
        and the blob stays, or the publisher sees that it is gone and sends it again.
        """
        now = self._clock.now()
        async with self._database.begin() as session:
            if (
                not dry_run
            ):  # a write comes first: SQLite locks at the first one, and what is read below must still hold then
                await session.execute(update(BlobRow).where(BlobRow.touched_s < 0).values(touched_s=0.0))
            needed, held = await self._needed(session)
            touched = {row.sha256: row.touched_s for row in await session.scalars(select(BlobRow).with_for_update())}
            sizes = await self._blobs.sizes()
            if not dry_run:  # blobs from before the table was there: their time begins now
                session.add_all(BlobRow(sha256=sha256, touched_s=now) for sha256 in sizes.keys() - touched.keys())
            old = {sha256 for sha256, time_s in touched.items() if time_s <= now - GRACE_S}
            doomed = sorted((sizes.keys() & old) - needed)
            found = Collected(len(doomed), sum(sizes[sha256] for sha256 in doomed), tuple(sorted(held)))
            if not dry_run:
                if doomed:
                    self._database.log(session, who, "collect_garbage", f"{found.blobs} blobs", bytes=found.size_bytes)
                for sha256 in doomed:
                    await session.execute(delete(BlobRow).where(BlobRow.sha256 == sha256))
                    await session.execute(delete(DeltaRow).where(DeltaRow.sha256 == sha256))
                    await self._blobs.remove(sha256)
        return found

    async def _needed(self, session: AsyncSession) -> tuple[set[str], set[str]]:
        """Return the blobs that must stay, and the retired versions among those that need them."""
        rows = (await session.scalars(select(VersionRow))).all()
        digests, numbers = await self._on_robots(session)
        aliased = {(alias.name, alias.version) for alias in await session.scalars(select(AliasRow))}
        manifests = [Manifest.parse(row.manifest.encode()) for row in rows]
        kept = {
            manifest.digest: manifest
            for row, manifest in zip(rows, manifests, strict=True)
            if row.retired_s is None
            or row.digest in digests
            or row.version in numbers
            or (row.name, row.version) in aliased
        }
        bases = {manifest.base.digest for manifest in kept.values() if manifest.base is not None}
        kept |= {manifest.digest: manifest for manifest in manifests if manifest.digest in bases}
        retired = {row.digest for row in rows if row.retired_s is not None}
        held = {f"{m.name}@{m.version}" for digest, m in kept.items() if digest in retired}
        files = {entry.sha256 for manifest in kept.values() for entry in manifest.files}
        return files | await needed_deltas(session, files), held

    async def _on_robots(self, session: AsyncSession) -> tuple[set[str], set[str]]:
        """Return digests and version numbers that robots hold or are about to.

        A status does not say of which model a version on disk is, so a number keeps that version of every model.
        """
        digests: set[str] = set()
        numbers: set[str] = set()
        for robot in await session.scalars(select(RobotRow)):
            status = robot.status
            digests.update(status.get(f"{place}_digest", "") for place in _HELD)
            numbers.update(status.get(f"{place}_version", "") for place in _HELD)
            numbers.update(status.get("versions", ()))
        # what a robot said it has installed last, should its status not have come through since
        installed = CommandRow.robot_state.in_(("COMMITTED", "INSTALLED"))
        last = select(func.max(CommandRow.number)).where(installed).group_by(CommandRow.robot)
        needs = or_(CommandRow.final.is_(False), CommandRow.number.in_(last))
        for command in await session.scalars(select(CommandRow).where(needs)):
            digests.add(command.order.get("manifest_sha256", ""))
            numbers.update(_versions(command.order))
        return digests, numbers - {""}


def _versions(order: dict[str, object]) -> Iterable[str]:
    named = order.get("versions", [])
    return [str(order.get("version", "")), *(map(str, named) if isinstance(named, list) else ())]
