# SPDX-License-Identifier: Apache-2.0
"""Which adapters there are. A row means: the archive is whole, its bundle was verified, and it is under its final name.

An adapter is a tar archive without compression that holds a bundle's files side by side. It becomes a row as an episode does, see
``vla_fleet.episodes.store``: a kill at any point loses nothing and leaves nothing half.
"""

from __future__ import annotations

import asyncio
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from vla_checkpoint import CheckpointError, verify_bundle
from vla_fleet.clock import Clock
from vla_fleet.episodes.files import EpisodeFiles, OffsetError
from vla_fleet.episodes.store import Standing
from vla_fleet.errors import InputError
from vla_fleet.storage.database import Database
from vla_fleet.storage.tables import AdapterRow

MAX_ADAPTER_BYTES = 1 << 30
_MOST_PER_ROBOT = 20
_MOST_FILES = 32
_CHECKING = ".checking-"


class AdapterFiles(EpisodeFiles):
    """Archives, named and taken in as episodes are."""

    def path(self, sha256: str) -> Path:
        """Return where a whole file is, or would be."""
        return self.root / f"{sha256}.tar"


@dataclass(frozen=True)
class AdapterSummary:
    """An adapter in a few words."""

    sha256: str
    """Of the archive."""
    size_bytes: int
    name: str
    version: str
    digest: str
    base_version: str
    base_digest: str
    examples: int
    """That it was trained on, as its manifest says."""


class AdapterStore:
    """Takes adapters in and finds them; the newest of each robot are kept."""

    def __init__(self, database: Database, files: AdapterFiles, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self.files = files
        self._finishing = asyncio.Lock()

    async def open(self) -> None:
        """Clear up after a crash."""
        async with self._database.begin() as session:
            known = set((await session.scalars(select(AdapterRow.sha256))).all())
        await asyncio.to_thread(self.files.sweep, known)
        for left in self.files.root.glob(f"{_CHECKING}*"):
            await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)

    async def standing(self, robot: str, sha256: str) -> Standing:
        """Return how much of an upload is here."""
        row = await self._row(sha256)
        return Standing(row.size_bytes, True) if row else Standing(self.files.received(robot, sha256), False)

    async def receive(self, robot: str, sha256: str, offset: int, total: int, data: AsyncIterator[bytes]) -> Standing:
        """Take in a piece of an archive; with the last one it becomes an adapter.

        Raises:
            FleetError: EPISODE_OFFSET, EPISODE_DIGEST, ADAPTER_INVALID, DISK_FULL or INPUT_INVALID.
        """
        if row := await self._row(sha256):
            return Standing(row.size_bytes, True)
        received = await self.files.append(robot, sha256, offset, total, data)
        if received < total:
            return Standing(received, False)
        async with self._finishing:
            if await self._row(sha256) is None:
                await self._finish(robot, sha256)
        return Standing(received, True)

    async def _finish(self, robot: str, sha256: str) -> None:
        part = self.files.part(robot, sha256)
        try:
            summary = await asyncio.to_thread(_check, self.files, part, sha256)
        except (InputError, OffsetError):
            self.files.drop_part(part)
            raise
        await self.files.upload(part, sha256)
        old: Sequence[str] = ()
        try:
            async with self._database.begin() as session:
                session.add(AdapterRow(**asdict(summary), robot=robot, received_s=self._clock.now()))
                await session.flush()
                self.files.name(part, sha256)
                own = select(AdapterRow.sha256).where(AdapterRow.robot == robot).order_by(AdapterRow.number.desc())
                old = (await session.scalars(own.offset(_MOST_PER_ROBOT))).all()
                await session.execute(delete(AdapterRow).where(AdapterRow.sha256.in_(old)))
        except IntegrityError:  # another server was faster
            if await self._row(sha256) is None:
                raise
        for gone in old:
            await self.files.discard(gone)
        self.files.drop_part(part)

    async def list(self, name: str, base_version: str, before: int, limit: int) -> Sequence[AdapterRow]:
        """Return adapters, the newest first; empty and 0 mean any."""
        query = select(AdapterRow).order_by(AdapterRow.number.desc()).limit(limit)
        for column, value in ((AdapterRow.name, name), (AdapterRow.base_version, base_version)):
            if value:
                query = query.where(column == value)
        if before:
            query = query.where(AdapterRow.number < before)
        async with self._database.begin() as session:
            return (await session.scalars(query)).all()

    async def _row(self, sha256: str) -> AdapterRow | None:
        async with self._database.begin() as session:
            return await session.scalar(select(AdapterRow).where(AdapterRow.sha256 == sha256))


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of an archive into a folder that is there.

    Raises:
        InputError: ADAPTER_INVALID: it is no archive, or holds anything but plain files side by side.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            for count, member in enumerate(tar):
                plain = member.isreg() and "/" not in member.name and member.name.strip(".") and "\0" not in member.name
                if not plain or count >= _MOST_FILES:
                    text = f"{member.name[:100]!r} is no plain file, or there are more than {_MOST_FILES}"
                    raise InputError("ADAPTER_INVALID", text)
                tar.extract(member, folder, filter="data")
    except (tarfile.TarError, OSError, EOFError, ValueError) as e:
        raise InputError("ADAPTER_INVALID", f"the archive cannot be read: {' '.join(str(e).split())}") from e


def _check(files: AdapterFiles, part: Path, sha256: str) -> AdapterSummary:
    """Verify an archive that has arrived: its hash, its files, its bundle to the last number."""
    try:
        found = files.hash(part)
    except FileNotFoundError as e:  # another request found it to be no adapter
        raise OffsetError("EPISODE_OFFSET", "nothing is here; send it again", 0) from e
    if found != sha256:
        text = f"the bytes hash to {found}, not to {sha256}; they were thrown away, send them again"
        raise OffsetError("EPISODE_DIGEST", text, 0)
    with tempfile.TemporaryDirectory(dir=files.root, prefix=_CHECKING) as folder:
        unpack(part, Path(folder))
        try:
            manifest = verify_bundle(folder).manifest
        except CheckpointError as e:
            raise InputError("ADAPTER_INVALID", f"{e.code}: {Path(e.path).name}: {e.reason}") from e
    if manifest.base is None:
        raise InputError("ADAPTER_INVALID", "it is a full bundle; those are published with `vla-fleet publish`")
    training = manifest.lineage.get("training")
    examples = training.get("examples") if isinstance(training, dict) else None
    return AdapterSummary(
        sha256, part.stat().st_size, manifest.name, manifest.version, manifest.digest, manifest.base.version,
        manifest.base.digest, examples if type(examples) is int and 0 <= examples < 2**31 else 0,
    )  # fmt: skip
