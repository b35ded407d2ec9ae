# SPDX-License-Identifier: Apache-2.0
"""Which adapters there are. An adapter is a tar archive without compression that holds a bundle's files side by side."""

from __future__ import annotations

import asyncio
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from vla_checkpoint import CheckpointError, verify_bundle
from vla_fleet.errors import InputError
from vla_fleet.storage.tables import AdapterRow
from vla_fleet.uploads.store import UploadStore

_MOST_PER_ROBOT = 20
_MOST_FILES = 32
_CHECKING = ".checking-"


class AdapterStore(UploadStore[AdapterRow]):
    """Takes adapters in and finds them; the newest of each robot are kept."""

    table = AdapterRow

    async def open(self) -> None:
        """Clear up after a crash."""
        await super().open()
        for left in self.files.root.glob(f"{_CHECKING}*"):
            await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)

    def _summarize(self, part: Path, sha256: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self.files.root, prefix=_CHECKING) as folder:
            unpack(part, Path(folder))
            try:
                manifest = verify_bundle(folder).manifest
            except CheckpointError as e:
                raise InputError("ADAPTER_INVALID", f"{e.code}: {Path(e.path).name}: {e.reason}") from e
        if manifest.base is None:
            raise InputError("ADAPTER_INVALID", "it is a full bundle; those are published with `vla-fleet publish`")
        training = manifest.lineage.get("training")
        examples = training.get("examples") if isinstance(training, dict) else None
        return {
            "sha256": sha256,
            "size_bytes": part.stat().st_size,
            "name": manifest.name,
            "version": manifest.version,
            "digest": manifest.digest,
            "base_version": manifest.base.version,
            "base_digest": manifest.base.digest,
            "examples": examples if type(examples) is int and 0 <= examples < 2**31 else 0,
        }

    async def _surplus(self, session: AsyncSession, robot: str, newest: str) -> Sequence[str]:
        own = select(AdapterRow.sha256).where(AdapterRow.robot == robot).order_by(AdapterRow.number.desc())
        return (await session.scalars(own.offset(_MOST_PER_ROBOT))).all()

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
