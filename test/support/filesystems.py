# SPDX-License-Identifier: Apache-2.0
"""Disks that misbehave: file systems of a store on which something fails until the test relents."""

from __future__ import annotations

from pathlib import Path

from vla_ota_manager.errors import StoreError
from vla_ota_manager.filesystem import CrashPoints, Filesystem


class UnwritableFilesystem(Filesystem):
    """While ``broken``, no file can be written whole (so no state is saved)."""

    def __init__(self) -> None:
        super().__init__(CrashPoints())
        self.broken = False

    def write_file(self, path: Path, data: bytes, point: str, *, keep_old_as: Path | None = None) -> None:
        """See Filesystem."""
        if self.broken:
            raise StoreError("STORE_IO", "read-only file system", str(path))
        super().write_file(path, data, point, keep_old_as=keep_old_as)
