# SPDX-License-Identifier: Apache-2.0
"""A disk that loses power: what was not flushed is kept or lost, each piece by itself.

What POSIX promises is all that counts here, whatever a real file system adds to it: content and mode of a file are on the disk
after ``fsync`` of the file, names after ``fsync`` of their folder. Of the rest any part may have got there, in any sequence;
only a rename is whole: both names or none.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vla_ota_manager.store.filesystem import AppendFile, Filesystem, ScatteredFile

Choose = Callable[[int], int]
"""Returns a number from 0 to below its argument."""
_NOTHING = b""


class PowerLoss(BaseException):
    """Nothing runs from here on: no handler of errors may hold it up."""


@dataclass
class _Folder:
    """What is flushed of a folder."""

    names: dict[str, int] = field(default_factory=dict)
    """Name → inode."""


class PowerLossFilesystem(Filesystem):
    """Passes every step on, and remembers what of it is flushed.

    Args:
        root: below it is the disk.
        cut: number of the step before which power is lost; 0: never.
    """

    def __init__(self, root: Path, cut: int = 0) -> None:
        self.root, self.cut, self.steps = root, cut, 0
        self.files: dict[int, tuple[bytes, int]] = {}
        self.links: dict[int, str] = {}
        self.folders: dict[int, _Folder] = {}
        self.renames: list[tuple[int, str, int, str, int]] = []
        self.missing: set[tuple[int, str]] = set()
        """Names that were free for a moment since their folder was flushed."""
        self._meet(root)

    # -- steps --------------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Count a step; end here if it is the one."""
        self.steps += 1
        if self.cut and self.steps >= self.cut:
            raise PowerLoss

    def point(self, name: str) -> None:
        """See Filesystem."""
        self.step()

    def make_dir(self, path: Path) -> None:
        """See Filesystem."""
        self.step()
        super().make_dir(path)

    def append(self, path: Path, size: int) -> AppendFile:
        """See Filesystem."""
        self.step()
        return _File(self, path, size)

    def scatter(self, path: Path) -> ScatteredFile:
        """See Filesystem."""
        self.step()
        return _Scattered(self, path)

    def seal(self, path: Path) -> None:
        """See Filesystem."""
        self.step()
        super().seal(path)

    def replace_symlink(self, link: Path, target: str, point: str) -> None:
        """See Filesystem."""
        self.step()
        super().replace_symlink(link, target, point)

    def _flush(self, fd: int, path: Path) -> None:
        self.step()
        entry = os.fstat(fd)
        self.files[entry.st_ino] = path.read_bytes(), entry.st_mode

    def _flush_dir(self, path: Path) -> None:
        self.step()
        own = path.stat().st_ino
        for name in path.iterdir():
            self._meet(name)
        self.folders[own] = _Folder({name.name: name.lstat().st_ino for name in path.iterdir()})
        self.renames = [r for r in self.renames if own not in (r[0], r[2])]
        self.missing = {m for m in self.missing if m[0] != own}

    def _rename(self, source: Path, target: Path) -> None:
        self.step()
        self._meet(source)
        moved = source.lstat().st_ino
        self.renames.append((source.parent.stat().st_ino, source.name, target.parent.stat().st_ino, target.name, moved))
        super()._rename(source, target)

    def _link(self, source: Path, target: Path) -> None:
        self.step()
        self.missing.add((target.parent.stat().st_ino, target.name))
        super()._link(source, target)

    def _meet(self, path: Path) -> None:
        """Note an inode that is new: nothing of it is flushed yet, but a symbolic link is made whole."""
        entry = path.lstat()
        if not stat.S_ISLNK(entry.st_mode):
            self.links.pop(entry.st_ino, None)  # a link had this number, and is gone
        if stat.S_ISDIR(entry.st_mode):
            self.folders.setdefault(entry.st_ino, _Folder())
        elif stat.S_ISLNK(entry.st_mode):
            self.links[entry.st_ino] = str(path.readlink())
        else:
            self.files.setdefault(entry.st_ino, (_NOTHING, 0o600))

    # -- afterwards ---------------------------------------------------------------------------------------------------------

    def after(self, target: Path, choose: Choose) -> None:
        """Make in the new folder ``target`` what is on the disk when power is back."""
        _Remains(self, target, choose).build()


class _File(AppendFile):
    """Notes a file that is new: an inode's number may have been another file's."""

    def __init__(self, filesystem: PowerLossFilesystem, path: Path, size: int) -> None:
        new = not path.exists()
        super().__init__(filesystem, path, size)
        if new:
            filesystem.files[path.stat().st_ino] = _NOTHING, 0o600

    def write(self, data: bytes) -> None:
        """See AppendFile."""
        assert isinstance(self._filesystem, PowerLossFilesystem)
        self._filesystem.step()
        super().write(data)


class _Scattered(ScatteredFile):
    """Likewise."""

    def __init__(self, filesystem: PowerLossFilesystem, path: Path) -> None:
        new = not path.exists()
        super().__init__(filesystem, path)
        if new:
            filesystem.files[path.stat().st_ino] = _NOTHING, 0o600

    def write(self, data: bytes, offset: int) -> None:
        """See ScatteredFile."""
        assert isinstance(self._filesystem, PowerLossFilesystem)
        self._filesystem.step()
        super().write(data, offset)


class _Remains:
    """One way in which a disk may look after a loss of power."""

    def __init__(self, disk: PowerLossFilesystem, target: Path, choose: Choose) -> None:
        self._disk, self._target, self._choose = disk, target, choose
        self._paths: dict[int, Path] = {}
        self._made: dict[int, Path] = {}
        for path in (disk.root, *disk.root.rglob("*")):
            disk._meet(path)
            self._paths.setdefault(path.lstat().st_ino, path)
        self._happened = {id(rename): bool(choose(2)) for rename in disk.renames}

    def build(self) -> None:
        """Make it."""
        self._folder(self._disk.root.stat().st_ino, self._target)

    def _folder(self, inode: int, target: Path) -> None:
        target.mkdir()
        before = self._disk.folders[inode].names if inode in self._disk.folders else {}
        there = self._paths.get(inode)
        now = {path.name: path.lstat().st_ino for path in there.iterdir()} if there is not None else {}
        for name in sorted({*before, *now}):
            found = self._name(inode, name, before.get(name), now.get(name))
            if found is not None:
                self._entry(found, target / name)

    def _name(self, folder: int, name: str, before: int | None, now: int | None) -> int | None:
        """Return what a name means afterwards, of what it meant before and means now."""
        for rename in reversed(self._disk.renames):
            source, old_name, target, new_name, moved = rename
            if (folder, name) == (target, new_name):
                return moved if self._happened[id(rename)] else before
            if (folder, name) == (source, old_name):
                return None if self._happened[id(rename)] else (before, moved)[self._choose(2)]
        if before == now:
            return now
        found = [before, now]
        if (folder, name) in self._disk.missing:
            found.append(None)
        return found[self._choose(len(found))]

    def _entry(self, inode: int, target: Path) -> None:
        if inode in self._disk.links and self._kind(inode) != "file":
            target.symlink_to(self._disk.links[inode])
        elif inode in self._disk.folders and self._kind(inode) != "file":
            self._folder(inode, target)
        elif inode in self._made:
            target.hardlink_to(self._made[inode])
        else:
            data, mode = self._content(inode)
            target.write_bytes(data)
            target.chmod(stat.S_IMODE(mode))
            self._made[inode] = target

    def _kind(self, inode: int) -> str:
        path = self._paths.get(inode)
        return "file" if path is not None and path.is_file() and not path.is_symlink() else ""

    def _content(self, inode: int) -> tuple[bytes, int]:
        """Return the flushed content, the present one, or a part of it; what lies behind may be zeros."""
        flushed, mode = self._disk.files.get(inode, (_NOTHING, 0o600))
        path = self._paths.get(inode)
        if path is None:
            return flushed, mode
        data, mode = path.read_bytes(), (mode, path.stat().st_mode)[self._choose(2)]
        if data == flushed:
            return data, mode
        part = self._choose(len(data) + 1)
        if data.startswith(flushed):
            part = max(part, len(flushed))
        ways: list[bytes] = [flushed, data, data[:part], data[:part] + bytes(len(data) - part)]
        chosen = ways[self._choose(len(ways))]
        if len(data) >= len(flushed) and not data.startswith(
            flushed
        ):  # written anywhere: what is as it was flushed stays
            chosen = chosen + flushed[len(chosen) :]
            same = zip(flushed, data, chosen, strict=False)
            chosen = bytes(a if a == b else c for a, b, c in same) + chosen[len(flushed) :]
        return chosen, mode
