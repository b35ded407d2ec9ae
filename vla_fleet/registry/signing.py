# SPDX-License-Identifier: Apache-2.0
"""What was published is signed (TUF), so that a robot with a trust root need not trust this server's word.

The signed targets follow from the table of versions: what is published and not retired. So a server that is killed between a
publication and its signature signs when it looks again. Without the targets key here, publishers sign (``take_targets``), and
this server only says, with the online key, that their targets are the newest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_checkpoint import CheckpointError
from vla_fleet.clock import Clock
from vla_fleet.errors import ConflictError, FleetError, MissingError
from vla_fleet.storage.database import Database, put
from vla_fleet.storage.tables import LeaseRow, TrustFileRow, VersionRow

if TYPE_CHECKING:  # a server that signs nothing starts without what signs: half a second
    from securesystemslib.signer import Signer
    from tuf.api.metadata import TargetFile

    from vla_checkpoint.repository.metadata import Repository

LOOK_S = 60.0
"""How often it is looked whether something has to be signed again [s]."""
_WARN = timedelta(days=30)
log = structlog.get_logger("vla_fleet")


class Signing:
    """Keeps the signed metadata of one server, or of several on one database.

    Args:
        database: of versions and metadata.
        clock: decides when something has to be signed again.
        folder: of the keys; None: this server signs nothing, and gives what others signed.

    Raises:
        FleetError: TRUST_KEYS: a key or a root cannot be read.
    """

    def __init__(self, database: Database, clock: Clock, folder: Path | None) -> None:
        self._database, self._clock, self._folder = database, clock, folder
        if folder is not None:
            self._keys(folder)

    async def file(self, name: str) -> bytes:
        """Return a file of signed metadata.

        Raises:
            MissingError: NOT_FOUND.
        """
        async with self._database.begin() as session:
            row = await session.get(TrustFileRow, name)
        if row is None:
            raise MissingError("NOT_FOUND", f"{name} is not here; a server signs with --signing-keys")
        return row.text.encode()

    async def files(self) -> dict[str, str]:
        """Return every file of signed metadata."""
        async with self._database.begin() as session:
            return {row.name: row.text for row in await session.scalars(select(TrustFileRow))}

    async def bring_up_to_date(self) -> None:
        """Sign what was published or retired since, and what would expire; nothing without keys.

        Raises:
            FleetError: TRUST_KEYS.
        """
        await self._change(None)

    async def take_targets(self, data: bytes) -> None:
        """Take targets that a publisher has signed.

        Raises:
            FleetError: TRUST_KEYS: this server has no online key; TRUST_TARGETS: they are not signed, or not the next ones.
        """
        if self._folder is None:
            raise ConflictError("TRUST_KEYS", "this server does not sign: start it with --signing-keys")
        await self._change(data)

    async def _change(self, targets: bytes | None) -> None:
        if self._folder is None:
            return
        from vla_checkpoint.repository.metadata import Repository

        roots, signers = self._keys(self._folder)
        async with self._database.begin() as session:
            # one signs at a time, also of several servers: whoever comes second sees what the first one signed
            await put(session, LeaseRow, {"name": "signing"}, {"holder": "", "until_s": 0.0})
            before = {row.name: row.text.encode() for row in await session.scalars(select(TrustFileRow))}
            try:
                repository = Repository(before, roots)
                if targets is not None:
                    repository.take_targets(targets)
                await self._sign(session, repository, signers)
            except CheckpointError as e:
                raise ConflictError(e.code, f"{e.path}: {e.reason}") from e
            for name, data in repository.files.items():
                if before.get(name) != data:
                    await put(session, TrustFileRow, {"name": name}, {"text": data.decode()})
            gone = before.keys() - repository.files.keys()
            await session.execute(delete(TrustFileRow).where(TrustFileRow.name.in_(gone)))

    async def _sign(self, session: AsyncSession, repository: Repository, signers: list[Signer]) -> None:
        from vla_checkpoint.repository.metadata import target, target_path

        now = datetime.fromtimestamp(self._clock.now(), timezone.utc)
        wanted: Mapping[str, TargetFile] | None = None
        if repository.can_sign("targets", signers):
            rows = await session.scalars(select(VersionRow).where(VersionRow.retired_s.is_(None)))
            paths = ((target_path(row.name, row.version), row.manifest.encode()) for row in rows)
            wanted = {path: target(path, manifest) for path, manifest in paths}
        elif "targets" not in repository.expiry():
            log.warning("nothing is signed yet: publish with --sign-with, or give --signing-keys the key of targets")
            return
        await asyncio.to_thread(repository.sign, signers, wanted, now)
        for role, expires in repository.expiry().items():
            if expires < now + (_WARN if role in ("root", "targets") else timedelta(0)):
                log.warning("what is signed expires and its key is not here", role=role, expires=expires.isoformat())

    def _keys(self, folder: Path) -> tuple[dict[str, bytes], list[Signer]]:
        """Read roots and keys, each time anew: a rotation needs no restart."""
        from vla_checkpoint.repository.keys import load_roots, load_signers

        try:
            return load_roots(folder), list(load_signers(folder).values())
        except CheckpointError as e:
            raise FleetError(e.code, f"{e.path}: {e.reason}") from e
