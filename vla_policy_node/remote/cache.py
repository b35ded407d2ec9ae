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
from collections.abc import Callable, Iterable, Iterator
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
    def claim(self, manifest: Manifest) -> Iterator[Claim]:
        """Make room for a bundle's files, and keep them as long as the ``with`` lasts. Raises WorkerError WORKER_CACHE_FULL."""
        sizes = {entry.sha256: entry.size for entry in manifest.files}
        with self._lock:
            self._make_room(sizes)
            self._claims.append(sizes)
        folder = Path(tempfile.mkdtemp(dir=self._sessions))
        try:
            yield Claim(manifest, self._blobs, folder)
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
    """One bundle's files in the cache."""

    def __init__(self, manifest: Manifest, blobs: Path, folder: Path) -> None:
        self._manifest, self._blobs, self._folder = manifest, blobs, folder

    def missing(self) -> list[FileEntry]:
        """Return the files that have to be sent, each content once."""
        entries = {entry.sha256: entry for entry in self._manifest.files}
        return [entry for digest, entry in entries.items() if not (self._blobs / digest).exists()]

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

    def assemble(self, manifest: bytes) -> Path:
        """Return a folder with the bundle. Raises WorkerError WORKER_CACHE_FULL."""
        bundle = self._folder / "bundle"
        shutil.rmtree(bundle, ignore_errors=True)
        try:
            bundle.mkdir()
            (bundle / MANIFEST_NAME).write_bytes(manifest)
            for entry in self._manifest.files:
                path = bundle / entry.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.hardlink_to(self._blobs / entry.sha256)
        except OSError as e:
            raise WorkerError(FULL, f"{bundle}: {e.strerror}") from e
        return bundle

    def drop_damaged(self, keep: Callable[[], None]) -> bool:
        """Forget files that are not what they were, for example after a power loss; whether there were any.

        ``keep`` is called again and again, and may raise.
        """
        found = False
        for entry in self._manifest.files:
            path, digest = self._blobs / entry.sha256, hashlib.sha256()
            with contextlib.suppress(OSError), path.open("rb") as file:  # what cannot be read is damaged, too
                while data := file.read(_READ_BYTES):
                    digest.update(data)
                    keep()
            if digest.hexdigest() != entry.sha256:
                path.unlink(missing_ok=True)
                found = True
        return found
