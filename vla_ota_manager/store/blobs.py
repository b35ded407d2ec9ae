# SPDX-License-Identifier: Apache-2.0
"""Files by their SHA-256: partial downloads, finished blobs, and who still needs one.

A finished download is flushed, made read-only ("sealed") and linked into ``blobs/sha256/``. Its name in ``partial/`` stays
until the version that needs it has links of its own: so a blob's link count says whether anybody needs it, also to other
managers that share ``blobs/``, and a crash between two steps loses nothing.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vla_checkpoint.files import Cancel
from vla_ota_manager.records import DIGEST, check_digest
from vla_ota_manager.store.damage import file_problem
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.parts import Parts, PartsFile

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class PartialInfo:
    """What is known of a partial download."""

    parts: Parts
    """What can be relied upon."""
    etag: str
    """Strong validator of the server's copy; empty = none."""

    @property
    def size(self) -> int:
        """All that can be relied upon [bytes]."""
        return self.parts.total


class BlobStore:
    """Blobs and partial downloads. One process writes ``partial/``; ``blobs/`` may be shared under its lock."""

    def __init__(self, blob_dir: Path, partial_dir: Path, filesystem: Filesystem) -> None:
        self.blob_dir = blob_dir
        self.partial_dir = partial_dir
        self.fs = filesystem

    def blob(self, sha256: str) -> Path:
        """Return where a finished blob is, or would be."""
        return self.blob_dir / check_digest(sha256)

    def partial(self, sha256: str) -> Path:
        """Return where a download of it is, or would be."""
        return self.partial_dir / check_digest(sha256)

    def claim(self, sha256: str, size: int) -> bool:
        """Hold on to a finished blob if there is one; true means that nothing has to be fetched."""
        partial, blob = self.partial(sha256), self.blob(sha256)
        if _is_sealed(partial, size):
            self._publish(sha256)
            return True
        with self._locked():
            if not _is_sealed(blob, size):
                return False
            self.discard(sha256)
            self.fs.link(blob, partial, "blob.claim")
        return True

    def info(self, sha256: str, size: int) -> PartialInfo:
        """Return what is there of a partial download of ``size`` bytes; after a reboot only what was flushed counts."""
        partial = self.partial(sha256)
        with suppress(OSError):
            if _is_sealed(partial, size):
                return PartialInfo(Parts.beginning(size, size), "")
            if not partial.lstat().st_mode & 0o222:  # sealed, of another size: its bytes belong to a blob as well
                self.discard(sha256)
        try:
            present = partial.lstat()
            note = json.loads(self._note(sha256).read_bytes())
            flushed, boot, etag = int(note["flushed"]), str(note["boot_id"]), str(note["etag"])
            counts = list(note.get("parts", ()))
        except (OSError, ValueError, TypeError, KeyError):
            # bytes without a note: their hash decides in the end, and they cost nothing to keep
            return PartialInfo(Parts.beginning(size, _size(partial)), "")
        if not stat.S_ISREG(present.st_mode):
            return PartialInfo(Parts.beginning(size, 0), "")
        if boot == _boot_id():
            written, usable = self._written(sha256, size, present.st_size), present.st_size
        else:
            written, usable = Parts.counted(size, counts, present.st_size), min(flushed, present.st_size)
        return PartialInfo(written or Parts.beginning(size, usable), etag)

    def _written(self, sha256: str, size: int, present: int) -> Parts | None:
        """Return what a process of this boot has written in several places; None if it wrote from the beginning on."""
        try:
            return Parts.from_table(size, self._table(sha256).read_bytes(), present)
        except OSError:
            return None

    def note(self, sha256: str, flushed: int, etag: str, parts: Parts | None = None) -> None:
        """Write down how much of a partial download is flushed, and the server's validator.

        Args:
            sha256: which.
            flushed: so much of it from the beginning on [bytes].
            etag: the validator.
            parts: what is flushed, if that is more.
        """
        document = {"flushed": flushed, "etag": etag, "boot_id": _boot_id()}
        if parts is not None:
            document["parts"] = parts.there
        self.fs.write_file(self._note(sha256), json.dumps(document).encode(), "partial_note")

    def is_noted(self, sha256: str) -> bool:
        """Whether anything is written down about a partial download."""
        return self._note(sha256).exists()

    def open_parts(self, sha256: str, parts: Parts) -> PartsFile:
        """Open a download that grows in several places, of which ``parts`` is there."""
        return PartsFile(self.fs, self.partial(sha256), self._table(sha256), parts)

    def forget_parts(self, sha256: str) -> None:
        """Say that a download has nothing behind a gap any more."""
        if self._table(sha256).exists():
            self.fs.unlink(self._table(sha256), "partial.table")

    def finish(self, sha256: str) -> None:
        """Name a complete, hashed and flushed download."""
        self.fs.point("blob.complete")
        self.fs.seal(self.partial(sha256))
        self.fs.point("blob.sealed")
        self._publish(sha256)
        if self.is_noted(sha256):
            self.fs.unlink(self._note(sha256), "blob.note")
        self.forget_parts(sha256)

    def discard(self, sha256: str) -> None:
        """Throw a partial download away."""
        self.fs.unlink(self.partial(sha256), "partial.discard")
        self.fs.unlink(self._note(sha256), "partial.discard_note")
        self.forget_parts(sha256)

    def drop(self, sha256: str) -> None:
        """Forget a blob whose content turned out to be damaged; versions that link to it keep their own name."""
        if not _is_open(self.partial(sha256)):  # what is still being fetched is another copy
            self.discard(sha256)
        with self._locked():
            self.fs.unlink(self.blob(sha256), "blob.drop")

    def rescue(self, sha256: str, size: int, copy: Path, cancel: Cancel) -> bool:
        """Hold on to a blob if any of its names, or ``copy``, still has its content, and let go of what has not.

        Returns:
            False if every copy is damaged or gone: it has to be fetched.

        Raises:
            CancelledCheckError: ``cancel`` said so.
        """
        partial, blob = self.partial(sha256), self.blob(sha256)
        problems: dict[int, str] = {}  # by inode: mostly all three are one file
        for path in (partial, blob, copy):
            with suppress(OSError):
                inode = path.lstat().st_ino
                if inode not in problems:
                    problems[inode] = file_problem(path, size, sha256, cancel=cancel)
                if not problems[inode]:
                    self._hold(sha256, path)
                    return True
        self.drop(sha256)
        return False

    def _hold(self, sha256: str, intact: Path) -> None:
        """Let a blob's names be those of a file that was just found intact."""
        partial = self.partial(sha256)
        self.fs.seal(intact)
        if not _same(partial, intact):
            self.discard(sha256)
            self.fs.link(intact, partial, "blob.rescue")
        if not _same(partial, self.blob(sha256)):
            self._name(sha256)

    def release(self, keep: set[str]) -> None:
        """Remove partial downloads, and holds on finished ones, except those of ``keep``."""
        for path in self.partial_dir.iterdir():
            digest = path.name.split(".")[0]
            if DIGEST.fullmatch(digest) and digest not in keep and not path.is_dir():
                self.fs.unlink(path, "partial.release")

    def collect(self) -> int:
        """Remove blobs without another link; return the bytes freed."""
        freed = 0
        with self._locked():
            for path in self.blob_dir.iterdir():
                entry = path.lstat()
                if DIGEST.fullmatch(path.name) and stat.S_ISREG(entry.st_mode) and entry.st_nlink == 1:
                    self.fs.unlink(path, "blob.collect")
                    freed += entry.st_size
        return freed

    def _publish(self, sha256: str) -> None:
        if not _is_sealed(self.blob(sha256), _size(self.partial(sha256))):
            self._name(sha256)

    def _name(self, sha256: str) -> None:
        """Give a finished download the blob's name, and take it from what has it and is damaged."""
        blob = self.blob(sha256)
        with self._locked():
            if os.path.lexists(blob):
                self.fs.unlink(blob, "blob.drop")
            self.fs.link(self.partial(sha256), blob, "blob.publish")

    def _note(self, sha256: str) -> Path:
        return self.partial_dir / f"{check_digest(sha256)}.note"

    def _table(self, sha256: str) -> Path:
        return self.partial_dir / f"{check_digest(sha256)}.parts"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = self.fs.lock(self.blob_dir.parent / ".lock", wait=True)
        try:
            yield
        finally:
            os.close(fd)


def _is_sealed(path: Path, size: int) -> bool:
    try:
        entry = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(entry.st_mode) and entry.st_mode & 0o222 == 0 and entry.st_size == size


def _is_open(path: Path) -> bool:
    """Whether it is a file that is still written to."""
    try:
        entry = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(entry.st_mode) and entry.st_mode & 0o222 != 0


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except OSError:
        return False


def _size(path: Path) -> int:
    try:
        entry = path.lstat()
    except OSError:
        return 0
    return entry.st_size if stat.S_ISREG(entry.st_mode) else 0


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
