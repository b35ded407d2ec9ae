# SPDX-License-Identifier: Apache-2.0
"""File systems of a store that misbehave: something fails until the test relents, or the process dies at a point."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from vla_ota_manager.errors import StoreError
from vla_ota_manager.store.filesystem import AppendFile, Filesystem


class CrashingFilesystem(Filesystem):
    """Kills its process by SIGKILL at a crash point, and writes down those that are reached.

    Args:
        crash_at: ``name`` or ``name:n``, the n-th time that the point is reached; "" = nowhere.
        log: file that takes the names; "" = none.
    """

    def __init__(self, crash_at: str = "", log: str = "") -> None:
        self._name, _, nth = crash_at.partition(":")
        self._nth, self._log = int(nth or 1), log
        self._reached: Counter[str] = Counter()

    def point(self, name: str) -> None:
        """See Filesystem."""
        if self._log:
            with Path(self._log).open("a", encoding="utf-8") as file:
                file.write(name + "\n")
        self._reached[name] += 1
        if (name, self._reached[name]) == (self._name, self._nth):
            os.kill(os.getpid(), signal.SIGKILL)


class UnwritableFilesystem(Filesystem):
    """While ``broken``, no file can be written whole (so no state is saved) and no link replaced; ``code`` says why."""

    def __init__(self, code: str = "STORE_IO", *, broken: bool = False) -> None:
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


class SmallFilesystem(Filesystem):
    """A disk with room for ``capacity`` bytes, of which ``others`` may take a part at any moment; a file counts once."""

    def __init__(self, root: Path, capacity: int) -> None:
        self.root, self.capacity, self.others = root, capacity, 0

    @property
    def free(self) -> int:
        files: dict[int, int] = {}
        for path in self.root.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # the engine removes it this moment
                entry = path.lstat()
                files[entry.st_ino] = entry.st_size
        return max(0, self.capacity - self.others - sum(files.values()))

    def fill(self) -> None:
        """Let others take all that is free."""
        self.others += self.free

    def free_bytes(self, path: Path) -> int:
        """See Filesystem."""
        return self.free

    def append(self, path: Path, size: int) -> AppendFile:
        """See Filesystem."""
        return _SmallFile(self, path, size)

    def write_file(self, path: Path, data: bytes, point: str, *, keep_old_as: Path | None = None) -> None:
        """See Filesystem."""
        self.take(len(data), path)
        super().write_file(path, data, point, keep_old_as=keep_old_as)

    def take(self, size: int, path: Path) -> None:
        """Raise unless there is room for ``size`` bytes more."""
        if size > self.free:
            raise StoreError("DISK_FULL", "no space left", str(path))


class _SmallFile(AppendFile):
    def write(self, data: bytes) -> None:
        assert isinstance(self._filesystem, SmallFilesystem)
        self._filesystem.take(len(data), self.path)
        super().write(data)


class ActingFilesystem(Filesystem):
    """Does ``action`` once, when a crash point of that name is reached."""

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self.name, self._action = name, action

    def point(self, name: str) -> None:
        """See Filesystem."""
        super().point(name)
        if name == self.name:
            self.name = ""
            self._action()
