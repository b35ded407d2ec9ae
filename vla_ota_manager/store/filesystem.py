# SPDX-License-Identifier: Apache-2.0
"""The one object through which the store is written, with a named point around every step that a crash can fall between.

Its methods keep one promise: a name that exists names complete, flushed content. Files are written aside, flushed and renamed;
folders are flushed after a change of names. Readers need no such care and use ``pathlib``.

The points do nothing here. A test's subclass notes them, or ends its process at one of them; another one forgets what did not
pass ``_flush`` and ``_flush_dir``, as a disk does that loses power.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from vla_ota_manager.errors import StoreError


class AppendFile:
    """A file that grows at its end; unbuffered, so that a killed process leaves what it wrote."""

    def __init__(self, filesystem: Filesystem, path: Path, size: int) -> None:
        self._filesystem = filesystem
        self.path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.ftruncate(self._fd, size)
            os.lseek(self._fd, size, os.SEEK_SET)
        except OSError as e:
            raise _io_error(e, path) from e
        self.size = size

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._fd, view)
                view = view[written:]
                self.size += written
        except OSError as e:
            raise _io_error(e, self.path) from e

    def flush(self) -> None:
        """Return when everything written so far is on the disk."""
        self._filesystem._flush(self._fd, self.path)

    def close(self) -> None:
        """Close it; without :meth:`flush` its end may be lost at a power loss."""
        os.close(self._fd)

    def __enter__(self) -> AppendFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ScatteredFile:
    """A file that is written and read anywhere; unbuffered, so that a killed process leaves what it wrote."""

    def __init__(self, filesystem: Filesystem, path: Path) -> None:
        self._filesystem = filesystem
        self.path = path
        with _wrapped(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, data: bytes, offset: int) -> None:
        """Write ``data`` at ``offset``."""
        view = memoryview(data)
        with _wrapped(self.path):
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written

    def read(self, count: int, offset: int) -> bytes:
        """Return at most ``count`` bytes from ``offset`` on; empty at the end."""
        with _wrapped(self.path):
            return os.pread(self._fd, count, offset)

    def truncate(self, size: int) -> None:
        """Cut off what lies behind ``size``."""
        with _wrapped(self.path):
            os.ftruncate(self._fd, size)

    def flush(self) -> None:
        """Return when everything written so far is on the disk."""
        self._filesystem._flush(self._fd, self.path)

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


class Filesystem:
    """Writes of the store. An argument ``point`` is the prefix of the names of the points that a method passes."""

    def point(self, name: str) -> None:
        """Pass a point between two steps that a crash can fall between."""

    def make_dir(self, path: Path) -> None:
        """Make a folder and its parents, flushed; one that exists is fine."""
        with _wrapped(path):
            if path.is_dir():
                return
            if path.parent != path:
                self.make_dir(path.parent)
            path.mkdir(mode=0o755, exist_ok=True)
            self._flush_dir(path.parent)

    def write_file(self, path: Path, data: bytes, point: str, *, keep_old_as: Path | None = None) -> None:
        """Replace ``path`` by ``data`` atomically.

        Args:
            point: prefix of the points' names.
            keep_old_as: name under which the replaced content stays.
        """
        aside = path.with_name(path.name + ".new")
        with _wrapped(path):
            self.point(f"{point}.before_write")
            aside.unlink(missing_ok=True)
            with AppendFile(self, aside, 0) as file:
                file.write(data)
                self.point(f"{point}.after_write")
                file.flush()
            self.point(f"{point}.before_rename")
            if keep_old_as is not None and path.exists():
                keep_old_as.unlink(missing_ok=True)
                self._link(path, keep_old_as)
                self.point(f"{point}.after_keep")
            self._rename(aside, path)
            self.point(f"{point}.after_rename")
            self._flush_dir(path.parent)

    def append(self, path: Path, size: int) -> AppendFile:
        """Open ``path`` to write from offset ``size`` on; what lies behind is cut off."""
        return AppendFile(self, path, size)

    def scatter(self, path: Path) -> ScatteredFile:
        """Open ``path`` to write and read anywhere in it."""
        return ScatteredFile(self, path)

    def seal(self, path: Path) -> None:
        """Make a finished file read-only, flushed: that it is says that its content is complete."""
        with _wrapped(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fchmod(fd, 0o444)
                self._flush(fd, path)
            finally:
                os.close(fd)

    def link(self, source: Path, target: Path, point: str) -> None:
        """Give ``source`` a second name, flushed; a target that exists stays as it is."""
        with _wrapped(target):
            self.point(f"{point}.before_link")
            with contextlib.suppress(FileExistsError):
                self._link(source, target)
            self.point(f"{point}.after_link")
            self._flush_dir(target.parent)

    def rename(self, source: Path, target: Path, point: str) -> None:
        """Move a file or a folder to a name that is free, or a file over another one; flushed."""
        with _wrapped(target):
            self.point(f"{point}.before_rename")
            self._rename(source, target)
            self.point(f"{point}.after_rename")
            self._flush_dir(target.parent)
            if source.parent != target.parent:
                self._flush_dir(source.parent)

    def replace_symlink(self, link: Path, target: str, point: str) -> None:
        """Let ``link`` point to ``target`` (kept as given), atomically."""
        aside = link.with_name(link.name + ".new")
        with _wrapped(link):
            aside.unlink(missing_ok=True)
            aside.symlink_to(target)
            self.point(f"{point}.before_rename")
            self._rename(aside, link)
            self.point(f"{point}.after_rename")
            self._flush_dir(link.parent)

    def unlink(self, path: Path, point: str) -> None:
        """Remove a name; one that is not there is fine."""
        with _wrapped(path):
            self.point(f"{point}.before_unlink")
            path.unlink(missing_ok=True)
            self._flush_dir(path.parent)

    def remove_tree(self, path: Path, point: str) -> None:
        """Remove a folder: renamed to a hidden name first, so that no half of it is ever seen under its own."""
        doomed = path.with_name(f".doomed-{path.name.lstrip('.')}")
        with _wrapped(path):
            self.point(f"{point}.before_remove")
            if path.name.startswith(".doomed-"):
                doomed = path
            else:
                shutil.rmtree(doomed, ignore_errors=True)
                self._rename(path, doomed)
                self.point(f"{point}.half_removed")
            shutil.rmtree(doomed)
            self._flush_dir(doomed.parent)

    def free_bytes(self, path: Path) -> int:
        """Return the space that is free for this process [bytes]."""
        with _wrapped(path):
            return shutil.disk_usage(path).free

    def lock(self, path: Path, *, wait: bool) -> int:
        """Take an exclusive lock that ends with the process, and return its descriptor (close it to unlock).

        Raises:
            StoreError: STORE_LOCKED when somebody else has it and ``wait`` is false.
        """
        with _wrapped(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as e:
                os.close(fd)
                raise StoreError("STORE_LOCKED", "a manager (or fsck) works on this store", str(path)) from e
            return fd

    def _flush(self, fd: int, path: Path) -> None:
        with _wrapped(path):
            os.fsync(fd)

    def _flush_dir(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def _link(self, source: Path, target: Path) -> None:
        target.hardlink_to(source)


@contextlib.contextmanager
def _wrapped(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise _io_error(e, path) from e


def _io_error(error: OSError, path: Path) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError("DISK_FULL", "no space left", str(path))
    return StoreError("STORE_IO", error.strerror or str(error), str(path))
