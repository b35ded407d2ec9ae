# SPDX-License-Identifier: Apache-2.0
"""The model registry. A version is published whole or not at all, is verified before, and never changes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from vla_checkpoint import (
    MANIFEST_NAME,
    Bundle,
    CheckpointError,
    Manifest,
    check_bump,
    open_bundle,
    parse_version,
    verify_bundle,
)
from vla_fleet.clock import Clock
from vla_fleet.errors import ConflictError, InputError, MissingError
from vla_fleet.storage.blobs import BlobStore
from vla_fleet.storage.database import Database, put
from vla_fleet.storage.tables import AliasRow, BlobRow, ExperimentRow, LogRow, RolloutRow, VersionRow

_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Version:
    """A published version."""

    name: str
    version: str
    digest: str
    size_bytes: int
    published_s: float
    published_by: str
    aliases: tuple[str, ...] = ()
    retired_s: float | None = None


@dataclass(frozen=True)
class Ancestry:
    """Where a version comes from."""

    name: str
    version: str
    digest: str
    parent: str
    """``name@version`` if the registry has it, else the digest that the manifest names; empty: none is named."""
    lineage: dict[str, Any]
    """As the manifest has it: ``parent`` and ``method``, and what else the publisher gave."""


@dataclass(frozen=True)
class Move:
    """One move of an alias."""

    time_s: float
    who: str
    alias: str
    before: str
    version: str
    reason: str


class Registry:
    """Publishes versions and finds them."""

    def __init__(self, database: Database, blobs: BlobStore, clock: Clock) -> None:
        self._database, self._blobs, self._clock = database, blobs, clock

    async def publish(self, name: str, manifest_bytes: bytes, who: str) -> Version:
        """Publish the version that a manifest describes; its blobs must have been uploaded. The same manifest again is fine.

        Raises:
            FleetError: BLOB_MISSING, VERSION_EXISTS, or the code of what is wrong with the bundle.
        """
        try:
            manifest = Manifest.parse(manifest_bytes)
        except CheckpointError as e:
            raise InputError(e.code, str(e)) from e
        if manifest.name != name:
            raise InputError("NAME_MISMATCH", f"the manifest is of {manifest.name}, not of {name}")
        existing = await self._existing(manifest)
        if existing is not None and existing.retired_s is None:
            return existing
        async with self._database.begin() as session:
            await touch(session, (entry.sha256 for entry in manifest.files), self._clock.now())
        await self._check(manifest, manifest_bytes)
        if existing is not None:
            return await self._retire(existing, None, who)
        row = VersionRow(
            name=name,
            version=manifest.version,
            digest=manifest.digest,
            manifest=manifest_bytes.decode(),
            size_bytes=manifest.total_bytes,
            published_s=self._clock.now(),
            published_by=who,
        )
        try:
            async with self._database.begin() as session:
                session.add(row)
                subject = f"{name} {manifest.version}"
                self._database.log(session, who, "publish", subject, digest=manifest.digest)
        except IntegrityError:  # somebody else was faster
            existing = await self._existing(manifest)
            if existing is None:
                raise
            return existing
        return _version(row)

    async def retire(self, name: str, version: str, who: str) -> Version:
        """Take a version out of use: it can no longer be ordered, and goes from the disk when no robot holds it.

        Raises:
            FleetError: MODEL_NOT_FOUND; VERSION_IN_USE: an alias names it, or a rollout or an experiment has not ended.
        """
        found = {v.version: v for v in await self.versions(name)}.get(version)
        if found is None:
            raise MissingError("MODEL_NOT_FOUND", f"{name} {version} is not in the registry")
        if found.aliases:
            aliases = ", ".join(f"{name}@{alias}" for alias in found.aliases)
            raise ConflictError("VERSION_IN_USE", f"{name} {version} is {aliases}; move the alias first")
        if user := await self._user(name, version):
            raise ConflictError("VERSION_IN_USE", f"{name} {version} is in {user}; end it first")
        return await self._retire(found, found.retired_s or self._clock.now(), who)

    async def _user(self, name: str, version: str) -> str:
        """Return the rollout or experiment that still needs a version, or nothing."""
        rollout = select(RolloutRow.id).where(
            RolloutRow.active.is_not(None), RolloutRow.name == name, RolloutRow.version == version
        )
        experiment = select(ExperimentRow.id).where(
            ExperimentRow.ended_s == 0.0,
            ExperimentRow.model == name,
            or_(ExperimentRow.a == version, ExperimentRow.b == version),
        )
        async with self._database.begin() as session:
            if found := await session.scalar(rollout):
                return f"rollout {found}"
            if found := await session.scalar(experiment):
                return f"experiment {found}"
        return ""

    async def _retire(self, version: Version, at_s: float | None, who: str) -> Version:
        async with self._database.begin() as session:
            row = await session.get_one(VersionRow, (version.name, version.version))
            if (row.retired_s is None) != (at_s is None):
                action = "publish_again" if at_s is None else "retire"
                self._database.log(session, who, action, f"{row.name} {row.version}", digest=row.digest)
            row.retired_s = at_s
        return _version(row, version.aliases)

    async def lineage(self, name: str = "") -> list[Ancestry]:
        """Return where each version of a model, or of all models, comes from, newest first."""
        async with self._database.begin() as session:
            rows = (await session.scalars(select(VersionRow))).all()
        known = {row.digest: f"{row.name}@{row.version}" for row in rows}
        own = sorted(
            (row for row in rows if name in ("", row.name)), key=lambda row: parse_version(row.version), reverse=True
        )
        if name and not own:
            raise MissingError("MODEL_NOT_FOUND", f"{name} is not in the registry")
        return [_ancestry(row, known) for row in own]

    async def versions(self, name: str = "") -> list[Version]:
        """Return what was published, retired versions too, by name, newest version first."""
        async with self._database.begin() as session:
            rows = (
                await session.scalars(select(VersionRow).where(VersionRow.name == name) if name else select(VersionRow))
            ).all()
            aliases = (await session.scalars(select(AliasRow))).all()
        found = [
            _version(row, tuple(a.alias for a in aliases if (a.name, a.version) == (row.name, row.version)))
            for row in rows
        ]
        found.sort(key=lambda v: parse_version(v.version), reverse=True)
        return sorted(found, key=lambda v: v.name)

    async def find(self, reference: str) -> Version:
        """Return the version that ``name@alias``, ``name@1.2.0`` or ``name`` (the highest release) names.

        Raises:
            MissingError: MODEL_NOT_FOUND.
        """
        name, _, wanted = reference.partition("@")
        versions = await self.versions(name)
        versions = [version for version in versions if version.retired_s is None]
        for version in versions:
            if wanted in (version.version, *version.aliases) or (not wanted and "-" not in version.version):
                return version
        known = ", ".join(v.version for v in versions[:5]) or "no version of that name"
        raise MissingError("MODEL_NOT_FOUND", f"{reference!r} is not in the registry (there is: {known})")

    async def manifest(self, name: str, version: str) -> bytes:
        """Return a version's manifest."""
        async with self._database.begin() as session:
            row = await session.get(VersionRow, (name, version))
        if row is None:
            raise MissingError("MODEL_NOT_FOUND", f"{name} {version} is not in the registry")
        return row.manifest.encode()

    async def set_alias(self, name: str, alias: str, version: str, who: str, reason: str = "") -> None:
        """Let ``name@alias`` mean ``version`` from now on; the log keeps who moved it, from where, and why."""
        if not _ALIAS.fullmatch(alias):
            raise InputError("ALIAS_INVALID", f"{alias!r}: an alias is a lower-case word of letters, digits, _ and -")
        async with self._database.begin() as session:
            row = await session.get(VersionRow, (name, version))
            if row is None or row.retired_s is not None:
                raise MissingError("MODEL_NOT_FOUND", f"{name} {version} is not in the registry, or was retired")
            before = await session.get(AliasRow, (name, alias))
            was = before.version if before is not None else ""
            await put(session, AliasRow, {"name": name, "alias": alias}, {"version": version})
            self._database.log(session, who, "alias", f"{name}@{alias}", version=version, before=was, reason=reason)

    async def moves(self, name: str, alias: str = "") -> list[Move]:
        """Return how a model's aliases were moved, newest first."""
        subject = (
            LogRow.subject == f"{name}@{alias}" if alias else LogRow.subject.startswith(f"{name}@", autoescape=True)
        )
        query = select(LogRow).where(LogRow.action == "alias", subject).order_by(LogRow.id.desc())
        async with self._database.begin() as session:
            rows = (await session.scalars(query)).all()
        return [_move(row) for row in rows]

    async def _existing(self, manifest: Manifest) -> Version | None:
        async with self._database.begin() as session:
            row = await session.get(VersionRow, (manifest.name, manifest.version))
        if row is None:
            return None
        if row.digest != manifest.digest:
            text = f"{manifest.name} {manifest.version} is published with other content; versions never change"
            raise ConflictError("VERSION_EXISTS", text)
        return _version(row)

    async def _check(self, manifest: Manifest, manifest_bytes: bytes) -> None:
        """Verify the bundle as strictly as a robot does, and the step of its version."""
        before = await self._highest_below(manifest)
        async with AsyncExitStack() as stack:
            folder = await stack.enter_async_context(self._folder(manifest, manifest_bytes))
            older = None
            if before is not None:
                older = await self._older(stack, before)
            try:
                await asyncio.to_thread(_verify, folder, older)
            except CheckpointError as e:
                raise InputError(e.code, str(e).replace(str(folder), manifest.name)) from e

    async def _older(self, stack: AsyncExitStack, manifest_bytes: bytes) -> Path | Manifest:
        """Return the folder of a version; of one whose files are gone the manifest, which says less."""
        manifest = Manifest.parse(manifest_bytes)
        try:
            return await stack.enter_async_context(self._folder(manifest, manifest_bytes))
        except MissingError:
            return manifest

    @asynccontextmanager
    async def _folder(self, manifest: Manifest, manifest_bytes: bytes) -> AsyncIterator[Path]:
        async with self._blobs.folder_of((entry.path, entry.sha256) for entry in manifest.files) as folder:
            (folder / MANIFEST_NAME).write_bytes(manifest_bytes)
            yield folder

    async def _highest_below(self, manifest: Manifest) -> bytes | None:
        own = parse_version(manifest.version)
        async with self._database.begin() as session:
            rows = (await session.scalars(select(VersionRow).where(VersionRow.name == manifest.name))).all()
        below = [row for row in rows if parse_version(row.version) < own]
        best = max(below, key=lambda row: parse_version(row.version), default=None)
        return best.manifest.encode() if best is not None else None


async def touch(session: AsyncSession, blobs: Iterable[str], now_s: float) -> None:
    """Note that somebody is about to publish with these blobs: they are not collected for a while."""
    for sha256 in sorted(set(blobs)):  # in one order, so that two publishers cannot wait for each other
        await put(session, BlobRow, {"sha256": sha256}, {"touched_s": now_s})


def _verify(folder: Path, older: Path | Manifest | None) -> None:
    bundle: Bundle = verify_bundle(folder)
    if older is not None:
        check_bump(open_bundle(older) if isinstance(older, Path) else older, bundle)


def _version(row: VersionRow, aliases: tuple[str, ...] = ()) -> Version:
    return Version(
        row.name, row.version, row.digest, row.size_bytes, row.published_s, row.published_by, aliases, row.retired_s
    )


def _ancestry(row: VersionRow, known: dict[str, str]) -> Ancestry:
    lineage = dict(Manifest.parse(row.manifest.encode()).lineage)
    parent = str(lineage.get("parent") or "")
    return Ancestry(row.name, row.version, row.digest, known.get(parent, parent), lineage)


def _move(row: LogRow) -> Move:
    detail = row.detail
    alias = row.subject.partition("@")[2]
    return Move(row.time_s, row.who, alias, detail["before"], detail["version"], detail.get("reason", ""))
