# SPDX-License-Identifier: Apache-2.0
"""Deltas that robots may fetch in place of a version's files. They can be added at any time, and go with either version."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_checkpoint import CheckpointError, Manifest
from vla_checkpoint.delta import Offer, offers_json, read_delta
from vla_fleet.clock import Clock
from vla_fleet.errors import InputError
from vla_fleet.registry.registry import Registry, touch
from vla_fleet.storage.blobs import BlobStore
from vla_fleet.storage.database import Database, put
from vla_fleet.storage.tables import DeltaRow

_FILE = "delta"


class Deltas:
    """Keeps what deltas there are, and says which make the files of a version."""

    def __init__(self, database: Database, blobs: BlobStore, registry: Registry, clock: Clock) -> None:
        self._database, self._blobs, self._registry, self._clock = database, blobs, registry, clock

    async def offer(self, name: str, version: str, sha256: str, who: str) -> Offer:
        """Offer an uploaded delta to robots that are to get a version. What it makes, and of what, it says itself.

        Raises:
            FleetError: MODEL_NOT_FOUND, BLOB_MISSING, DELTA_FORMAT; DELTA_RESULT: it makes no file of this version.
        """
        manifest = Manifest.parse(await self._registry.manifest(name, version))
        async with self._database.begin() as session:
            await touch(session, [sha256], self._clock.now())
        async with self._blobs.folder_of([(_FILE, sha256)]) as folder:
            try:
                delta = read_delta(folder / _FILE)
            except CheckpointError as e:
                raise InputError(e.code, str(e).replace(str(folder / _FILE), sha256)) from e
        if delta.target.sha256 not in {entry.sha256 for entry in manifest.files}:
            raise InputError(
                "DELTA_RESULT", f"{sha256} makes {delta.target.sha256}, which is no file of {name} {version}"
            )
        offer = Offer(delta.target.sha256, tuple(base.sha256 for base in delta.bases), sha256, delta.size)
        async with self._database.begin() as session:
            values = {"target": offer.target, "bases": list(offer.bases), "size_bytes": offer.size}
            await put(session, DeltaRow, {"sha256": sha256}, values)
            self._database.log(session, who, "offer_delta", f"{name} {version}", sha256=sha256)
        return offer

    async def page(self, name: str, version: str) -> bytes:
        """Return a version's ``deltas.json``. Raises MissingError: MODEL_NOT_FOUND."""
        manifest = Manifest.parse(await self._registry.manifest(name, version))
        files = {entry.sha256 for entry in manifest.files}
        async with self._database.begin() as session:
            rows = await session.scalars(select(DeltaRow).where(DeltaRow.target.in_(files)).order_by(DeltaRow.sha256))
            return offers_json(Offer(row.target, tuple(row.bases), row.sha256, row.size_bytes) for row in rows)


async def needed_deltas(session: AsyncSession, blobs: Iterable[str]) -> set[str]:
    """Return the deltas whose target and bases are all among the blobs that stay."""
    kept = set(blobs)
    rows = await session.scalars(select(DeltaRow))
    return {row.sha256 for row in rows if row.target in kept and kept.issuperset(row.bases)}
