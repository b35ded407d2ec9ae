# SPDX-License-Identifier: Apache-2.0
"""Disks that misbehave: file systems of a store on which something fails until the test relents."""

from __future__ import annotations

from pathlib import Path

from vla_ota_manager.errors import StoreError
from vla_ota_manager.filesystem import CrashPoints, Filesystem


class UnwritableFilesystem(Filesystem):
    """While ``broken``, no file can be written whole (so no state is saved) and no link replaced; ``code`` says why."""

    def __init__(self, code: str = "STORE_IO", *, broken: bool = False) -> None:
        super().__init__(CrashPoints())
        self.code, self.broken = code, broken

    def write_file(self, path: Path, data: bytes, point: str, *, keep_old_as: Path | None = None) -> None:
        """See Filesystem."""
        self._refuse(path)
        super().write_file(path, data, point, keep_old_as=keep_old_as)

    def replace_symlink(self, link: Path, target: str, point: str) -> None:
        """See Filesystem."""
        self._refuse(link)
        super().replace_symlink(link, target, point)

    def _refuse(self, path: Path) -> None:
        if self.broken:
            raise StoreError(self.code, "told not to be written", str(path))
