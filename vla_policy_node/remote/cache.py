# SPDX-License-Identifier: Apache-2.0
"""The files that robots have sent, by SHA-256: a bundle that was here before is not sent again.

Under the cache's folder: ``blobs/<sha256>``, and ``sessions/`` with a folder of hard links for each bundle that is loaded. The
files used least recently make room. A robot's bundle is opened from its links as from a store, with every check.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from vla_checkpoint.manifest import FileEntry, Manifest
from vla_checkpoint.paths import MANIFEST_NAME
from vla_policy_node.errors import WorkerError

FULL = "WORKER_CACHE_FULL"
_READ_BYTES = 1 << 20


class Cache:
    """Files under a folder that no other host uses.

    Args:
        folder: made if it is not there.
        max_bytes: of all files together.

    Raises:
        WorkerError: WORKER_CACHE_UNUSABLE.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._blobs, self._sessions, self._max_bytes = folder / "blobs", folder / "sessions", max_bytes
        self._claims: list[dict[str, int]] = []
        self._lock = threading.Lock()
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._lock_file = (folder / "lock").open("w")
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self._sessions, ignore_errors=True)
            self._sessions.mkdir()
        except OSError as e:
            raise WorkerError("WORKER_CACHE_UNUSABLE", f"{folder}: {e.strerror}; is another host using it?") from e

    @contextlib.contextmanager
    def claim(self, manifests: Sequence[Manifest]) -> Iterator[Claim]:
        """Make room for the files of a bundle, and of its base, and keep them as long as the ``with`` lasts.

        Raises WorkerError WORKER_CACHE_FULL.
        """
        sizes = {entry.sha256: entry.size for manifest in manifests for entry in manifest.files}
        with self._lock:
            self._make_room(sizes)
            self._claims.append(sizes)
        folder = Path(tempfile.mkdtemp(dir=self._sessions))
        try:
            yield Claim(manifests, self._blobs, folder)
        finally:
            with self._lock:
                self._claims.remove(sizes)
            shutil.rmtree(folder, ignore_errors=True)

    def _make_room(self, sizes: dict[str, int]) -> None:
        claimed = {digest: size for claim in [*self._claims, sizes] for digest, size in claim.items()}
        there = {path.name: path.stat() for path in self._blobs.iterdir()}
        for digest in sizes.keys() & there.keys():
            os.utime(self._blobs / digest)
        idle = sorted(there.keys() - claimed.keys(), key=lambda digest: there[digest].st_mtime_ns)
        free = self._max_bytes - sum(claimed.values())
        if free < 0:
            raise WorkerError(FULL, f"{-free >> 20} MiB more than the host's --cache-bytes are in use")
        kept = sum(there[digest].st_size for digest in idle)
        for digest in idle:
            if kept <= free:
                break
            (self._blobs / digest).unlink()
            kept -= there[digest].st_size


class Claim:
    """The files of one bundle, and of its base, in the cache."""

    def __init__(self, manifests: Sequence[Manifest], blobs: Path, folder: Path) -> None:
        self._manifests, self._blobs, self._folder = manifests, blobs, folder
        self._entries = {entry.sha256: entry for manifest in manifests for entry in manifest.files}

    def missing(self) -> list[FileEntry]:
        """Return the files that have to be sent, each content once."""
        return [entry for digest, entry in self._entries.items() if not (self._blobs / digest).exists()]

    def store(self, entry: FileEntry, parts: Iterable[bytes | bytearray]) -> None:
        """Take a file's bytes. Raises WorkerError: DIGEST_FILE, WORKER_CACHE_FULL."""
        part, digest = self._folder / "part", hashlib.sha256()
        try:
            with part.open("wb") as file:
                for data in parts:
                    digest.update(data)
                    file.write(data)
            if digest.hexdigest() != entry.sha256:
                raise WorkerError("DIGEST_FILE", f"{entry.path}: its SHA-256 is not the manifest's")
            part.replace(self._blobs / entry.sha256)
        except OSError as e:
            raise WorkerError(FULL, f"{entry.path}: {e.strerror}") from e

    def assemble(self) -> Path:
        """Return a folder with the bundle; its base lies where it is looked for. Raises WorkerError WORKER_CACHE_FULL."""
        models = self._folder / "models"
        shutil.rmtree(models, ignore_errors=True)
        base = [models / manifest.name / manifest.version for manifest in self._manifests[1:]]
        folders = [models / ".loaded" / "bundle", *base]  # no model's name begins with a dot
        try:
            for folder, manifest in zip(folders, self._manifests, strict=True):
                folder.mkdir(parents=True)
                (folder / MANIFEST_NAME).write_bytes(manifest.canonical())
                for entry in manifest.files:
                    path = folder / entry.path
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.hardlink_to(self._blobs / entry.sha256)
        except OSError as e:
            raise WorkerError(FULL, f"{models}: {e.strerror}") from e
        return folders[0]

    def drop_damaged(self, keep: Callable[[], None]) -> bool:
        """Forget files that are not what they were, for example after a power loss; whether there were any.

        ``keep`` is called again and again, and may raise.
        """
        found = False
        for entry in self._entries.values():
            path, digest = self._blobs / entry.sha256, hashlib.sha256()
            with contextlib.suppress(OSError), path.open("rb") as file:  # what cannot be read is damaged, too
                while data := file.read(_READ_BYTES):
                    digest.update(data)
                    keep()
            if digest.hexdigest() != entry.sha256:
                path.unlink(missing_ok=True)
                found = True
        return found
