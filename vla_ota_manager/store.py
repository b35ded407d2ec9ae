# SPDX-License-Identifier: Apache-2.0
"""The robot's store: versions as folders of hard links to blobs, ``current``, and ``state.json``.

::

    <store_dir>/blobs/sha256/<hex>         read-only, flushed before they are named (or in a shared blob_dir)
    <store_dir>/models/<name>/<version>/   hard links to blobs, and manifest.json
    <store_dir>/partial/                   downloads, and bundles on their way
    <store_dir>/current                    relative symlink to the committed bundle
    <store_dir>/state.json                 the truth; state.json.old is the one before, for the case that it is damaged

``state.json`` is written before ``current``; whoever opens the store repairs ``current`` after it. So after a crash at any point
``current`` names a complete bundle that is, or was, committed.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vla_checkpoint.errors import CheckpointError
from vla_checkpoint.manifest import FileEntry, Manifest, load_manifest
from vla_checkpoint.version import parse_version
from vla_ota_manager.blobs import BlobStore
from vla_ota_manager.errors import StateError, StoreError
from vla_ota_manager.filesystem import Filesystem
from vla_ota_manager.records import Event, Ref, check_name, check_version
from vla_ota_manager.state import MAX_BYTES, State

STATE = "state.json"
OLD_STATE = "state.json.old"
_COPY_BYTES = 1 << 20

log = logging.getLogger("vla_ota_manager")


@dataclass(frozen=True)
class Installed:
    """A complete version on disk."""

    ref: Ref
    path: Path
    size_bytes: int
    installed_s: float


class Store:
    """One policy's store. Open it before use; a second manager is refused. Thread-safe where it says so."""

    def __init__(self, store_dir: Path, filesystem: Filesystem, blob_dir: Path | None = None) -> None:
        self.root = Path(store_dir).absolute()
        self.fs = filesystem
        blobs = (blob_dir or self.root / "blobs").absolute() / "sha256"
        self.blobs = BlobStore(blobs, self.root / "partial", filesystem)
        self.recovery_notes: list[str] = []
        """What :meth:`open` had to repair, in words."""
        self.unsaved: StoreError | None = None
        """Why the state as it is now is not on the disk; None: it is. See :meth:`edit` and :meth:`save_late`."""
        self._mutex = threading.RLock()
        self._lock_fd = -1
        self._state = self._saved = State()
        self._installed: list[Installed] | None = None

    # -- opening ------------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Lock the store, read its state and repair what a crash left.

        Raises:
            StoreError: STORE_LOCKED, STORE_IO, STORE_LAYOUT (blob_dir on another file system), STATE_TOO_NEW.
        """
        for folder in (self.root, self.root / "models", self.blobs.partial_dir, self.blobs.blob_dir):
            self.fs.make_dir(folder)
        if self.root.stat().st_dev != self.blobs.blob_dir.stat().st_dev:
            raise StoreError("STORE_LAYOUT", "is not on store_dir's file system (hard links)", str(self.blobs.blob_dir))
        self._lock_fd = self.fs.lock(self.root / ".lock", wait=False)
        try:
            self._sweep()
            self._state = self._saved = self._load()
            self.unsaved = None
            self._repair()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unlock the store."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _sweep(self) -> None:
        for path in (*self.root.glob("*.new"), *self.blobs.partial_dir.glob("*.new")):
            self.fs.unlink(path, "sweep.aside")
        for path in (*self.blobs.partial_dir.glob("*.bundle"), *self.blobs.partial_dir.glob(".doomed-*")):
            self.fs.remove_tree(path, "sweep.staged")
        for path in self.root.glob("models/*/.doomed-*"):
            self.fs.remove_tree(path, "sweep.version")

    def _load(self) -> State:
        try:
            return self._read(STATE)
        except FileNotFoundError:
            if not (self.root / OLD_STATE).exists() and self._current_ref() is None:
                return State()
            reason = "state.json is missing"
        except StateError as e:
            if e.code == "STATE_TOO_NEW":
                raise
            reason = str(e)
            self.fs.rename(self.root / STATE, self.root / f"state.json.corrupt-{time.time_ns()}", "state.set_aside")
        return self._rebuild(reason)

    def _rebuild(self, reason: str) -> State:
        """Make a state from the one before and from ``current``, which wins: it names what was committed last."""
        source = "the state before it"
        try:
            state = self._read(OLD_STATE)
        except (StateError, OSError):
            state, source = State(), "current alone (blocked and pinned versions are forgotten)"
        current = self._current_ref()
        if current is not None:
            state.note_committed(current)
            if state.trial is not None and state.trial.ref.digest == current.digest:
                state.trial = None
        state.settle()
        note = f"{reason}; rebuilt from {source}, committed: {state.committed or 'nothing'}"
        self.recovery_notes.append(note)
        state.error_code, state.message = "STATE_CORRUPT", note
        self._save(state)
        return state

    def _repair(self) -> None:
        committed, current = self._state.committed, self._current_ref()
        on_disk = {entry.ref.digest: entry.ref for entry in self.installed()}
        lost = committed is not None and on_disk.get(committed.digest) != committed
        if lost or (committed is None and current is not None):
            known = (committed, current, *reversed(self._state.lineage))
            fallback = next((on_disk[ref.digest] for ref in known if ref is not None and ref.digest in on_disk), None)
            self.recovery_notes.append(
                f"the committed {committed or 'version'} is gone from the disk; now committed: {fallback or 'nothing'}"
            )
            with self.edit(durable=False) as state:
                state.committed = state.previous = None
                if fallback is not None:
                    state.note_rolled_back(fallback)
                else:
                    state.lineage = []
                state.error_code, state.message = "MODEL_NOT_FOUND", self.recovery_notes[-1]
        self.repair_current()

    def _read(self, name: str) -> State:
        path = self.root / name
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise StateError("STATE_CORRUPT", f"larger than {MAX_BYTES} bytes", str(path))
        return State.from_bytes(data)

    # -- state --------------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state as it is now. Do not change it; it is replaced, never mutated (thread-safe)."""
        return self._state

    @contextmanager
    def edit(self, *, durable: bool = True) -> Iterator[State]:
        """Change the state: the block gets a copy, which is saved and becomes the state if nothing was raised (thread-safe).

        Args:
            durable: what cannot be saved does not happen. False: it happens all the same, and is saved when the disk allows it:
                for everything that takes control from a version, which must not wait for a disk.
        """
        with self._mutex:
            draft = copy.deepcopy(self._state)
            yield draft
            if draft == self._state:
                return
            try:
                self._save(draft)
            except StoreError as e:
                if durable:
                    raise
                if self.unsaved is None:
                    log.error("the state cannot be saved, and is kept in memory: %s", e)
                self._state, self.unsaved = draft, e
            else:
                self._state = draft

    def save_late(self) -> None:
        """Try again to save what could not be saved (thread-safe).

        Raises:
            StoreError: it still cannot.
        """
        with self._mutex:
            if self.unsaved is not None:
                self._save(self._state)
                log.info("the state is saved again")

    def _save(self, state: State) -> None:
        self.fs.write_file(self.root / STATE, state.to_bytes(), "state", keep_old_as=self.root / OLD_STATE)
        self._saved, self.unsaved = state, None

    # -- versions -----------------------------------------------------------------------------------------------------------

    def installed(self) -> list[Installed]:
        """Return the complete versions on disk, newest installed first (thread-safe)."""
        with self._mutex:
            if self._installed is None:
                found = (self._examine(path) for path in self.root.glob("models/*/*") if not path.name.startswith("."))
                entries = [entry for entry in found if entry is not None]
                self._installed = sorted(entries, key=lambda entry: entry.installed_s, reverse=True)
            return list(self._installed)

    def path_of(self, ref: Ref) -> Path:
        """Return the folder of a version, there or not."""
        return self.root / "models" / check_name(ref.name) / check_version(ref.version)

    def find(self, version: str, name: str = "") -> Ref | None:
        """Return a version on disk; among models of several names the committed one's comes first (thread-safe)."""
        committed = self._state.committed
        matches = [e.ref for e in self.installed() if e.ref.version == version and name in ("", e.ref.name)]
        own = [ref for ref in matches if committed is not None and ref.name == committed.name]
        return next(iter(own or matches), None)

    def has(self, ref: Ref) -> bool:
        """Whether this very bundle is complete on disk (thread-safe)."""
        return any(entry.ref == ref for entry in self.installed())

    def stage(self, manifest: Manifest, manifest_bytes: bytes) -> Path:
        """Put a bundle together from finished blobs, under a name that nobody takes for a version; return its folder."""
        staged = self.blobs.partial_dir / f"{manifest.digest}.bundle"
        if staged.exists():
            self.fs.remove_tree(staged, "stage.old")
        self.fs.make_dir(staged)
        for entry in manifest.files:
            target = staged / entry.path
            self.fs.make_dir(target.parent)
            self.fs.link(self.blobs.partial(entry.sha256), target, "stage.file")
        self.fs.write_file(staged / "manifest.json", manifest_bytes, "stage.manifest")
        return staged

    def install(self, staged: Path, manifest: Manifest) -> Path:
        """Give a verified bundle its name, and let go of its downloads; return its folder.

        Raises:
            StoreError: VERSION_CONFLICT when another bundle has that name and version.
        """
        path = self.path_of(Ref(manifest.name, manifest.version, manifest.digest))
        if path.exists():
            raise StoreError("VERSION_CONFLICT", "another bundle of that name and version is on disk", str(path))
        self.fs.make_dir(path.parent)
        self.fs.rename(staged, path, "install")
        with self._mutex:
            self._installed = None
        return path

    def uninstall(self, ref: Ref) -> None:
        """Remove a version from the disk."""
        self.fs.remove_tree(self.path_of(ref), "uninstall")
        with suppress(OSError):
            self.path_of(ref).parent.rmdir()  # the model's folder, if that was its last version
        with self._mutex:
            self._installed = None

    def retain(self, keep_versions: int) -> list[Ref]:
        """Remove what retention does not keep: all but the newest versions and those that the state or a waiting update needs.

        Returns:
            What was removed.
        """
        needed = {ref.digest for state in (self._state, self._saved) for ref in state.references()}
        needed |= {update.manifest_sha256 for update in self._state.queue}
        doomed = [entry.ref for entry in self.installed()[keep_versions:] if entry.ref.digest not in needed]
        for ref in doomed:
            self.uninstall(ref)
        with self.edit(durable=False) as state:
            on_disk = {entry.ref.digest for entry in self.installed()}
            state.lineage = [ref for ref in state.lineage if ref.digest in on_disk]
            state.calibration = {digest: entry for digest, entry in state.calibration.items() if digest in on_disk}
        self.blobs.collect()
        return doomed

    def point_current(self, ref: Ref) -> None:
        """Let ``current`` name a committed version."""
        target = self.path_of(ref)
        if not target.is_dir():
            raise StoreError("MODEL_NOT_FOUND", f"{ref} is not on disk", str(target))
        self.fs.replace_symlink(self.root / "current", str(target.relative_to(self.root)), "current")

    def repair_current(self) -> None:
        """Let ``current`` name the committed version if it does not."""
        committed = self._state.committed
        if committed is None:
            return
        link, wanted = self.root / "current", self.path_of(committed).relative_to(self.root)
        if not link.is_symlink() or link.readlink() != wanted:
            self.point_current(committed)

    def import_bundle(self, folder: Path, verify: Callable[[Path], Manifest], *, commit: bool) -> Ref:
        """Adopt a bundle that is on this machine already (a factory image), by copy.

        Args:
            folder: the bundle.
            verify: checks a bundle and returns its manifest, or raises.
            commit: make it the committed version (that is: vouch for it).
        """
        manifest = verify(folder)
        ref = Ref(manifest.name, manifest.version, manifest.digest)
        if not self.has(ref):
            for entry in manifest.files:
                if not self.blobs.claim(entry.sha256, entry.size):
                    self._copy_in(folder / entry.path, entry)
            staged = self.stage(manifest, manifest.canonical())
            verify(staged)
            self.install(staged, manifest)
            self.blobs.release(set())
        with self.edit() as state:
            state.history.append(Event(time.time(), "", "", "INSTALLED", ref.version, "", f"adopted from {folder}"))
            if commit:
                state.note_committed(ref)
        self.repair_current()
        return ref

    def _copy_in(self, source: Path, entry: FileEntry) -> None:
        with source.open("rb") as reader, self.fs.append(self.blobs.partial(entry.sha256), 0) as writer:
            while data := reader.read(_COPY_BYTES):
                writer.write(data)
            writer.flush()
        self.blobs.finish(entry.sha256)

    def _examine(self, path: Path) -> Installed | None:
        try:
            manifest = load_manifest(path)
            if (manifest.name, manifest.version) != (path.parent.name, path.name):
                return None
            if any((path / entry.path).stat().st_size != entry.size for entry in manifest.files):
                return None
            ref = Ref(manifest.name, manifest.version, manifest.digest)
            return Installed(ref, path, manifest.total_bytes, (path / "manifest.json").stat().st_mtime)
        except (CheckpointError, StoreError, OSError):
            return None

    def _current_ref(self) -> Ref | None:
        link = self.root / "current"
        try:
            target = (self.root / link.readlink()).resolve(strict=True)
        except OSError:
            return None
        entry = self._examine(target) if target.parent.parent == (self.root / "models").resolve() else None
        return entry.ref if entry is not None else None


def newest_first(versions: list[str]) -> list[str]:
    """Sort versions by their precedence, highest first."""
    return sorted(versions, key=parse_version, reverse=True)
