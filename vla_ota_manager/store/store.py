# SPDX-License-Identifier: Apache-2.0
"""The robot's store: versions as folders of hard links to blobs, ``current``, and ``state.json``.

::

    <store_dir>/blobs/sha256/<hex>         read-only, flushed before they are named (or in a shared blob_dir)
    <store_dir>/models/<name>/<version>/   hard links to blobs, and manifest.json
    <store_dir>/partial/                   downloads, and bundles on their way
    <store_dir>/current                    relative symlink to the committed bundle
    <store_dir>/state.json                 the truth; state.json.old is the one before, for the case that it is damaged

``state.json`` is written before ``current``; opening the store repairs ``current``. So after a crash at any point
``current`` names a complete bundle that is, or was, committed.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vla_checkpoint import MANIFEST_NAME, CheckpointError, FileEntry, Manifest, load_manifest, parse_version
from vla_checkpoint.files import Cancel
from vla_ota_manager.errors import RefusedError, StateError, StoreError
from vla_ota_manager.records import Event, Ref, check_name, check_version
from vla_ota_manager.store.blobs import BlobStore
from vla_ota_manager.store.damage import find_damage, find_strays
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.state import MAX_BYTES, State

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
    robot_type: str
    base: str = ""
    """Digest of the bundle that it is an adapter on; empty: it is none."""


class Store:
    """One policy's store. Open it before use; a second manager is refused. Thread-safe where it says so."""

    def __init__(self, store_dir: Path, filesystem: Filesystem, blob_dir: Path | None = None) -> None:
        self.root = Path(store_dir).absolute()
        self.fs = filesystem
        blobs = (blob_dir or self.root / "blobs").absolute() / "sha256"
        self.blobs = BlobStore(blobs, self.root / "partial", filesystem)
        self.recovery_notes: list[str] = []
        """What :meth:`open` had to repair, in words."""
        self.changes: Counter[Path] = Counter()
        """How often each version's folder has changed."""
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
        for path in {*self.blobs.partial_dir.glob("*.bundle"), *self.blobs.partial_dir.glob(".doomed-*")}:
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
            how = "gone from"
            if fallback is None and committed is not None and self.path_of(committed).is_dir():
                fallback, how = committed, "damaged on"  # there is nothing better, and it can be repaired
            self.recovery_notes.append(
                f"the committed {committed or 'version'} is {how} the disk; now committed: {fallback or 'nothing'}"
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
                entries = [entry for entry in map(self._examine, self.folders()) if entry is not None]
                self._installed = sorted(entries, key=lambda entry: entry.installed_s, reverse=True)
            return list(self._installed)

    def folders(self) -> list[Path]:
        """Return what lies where versions lie, whatever it is (thread-safe)."""
        return [path for path in self.root.glob("models/*/*") if not path.name.startswith(".")]

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

    @contextmanager
    def staged(self, manifest: Manifest) -> Iterator[Path]:
        """Put a bundle together from finished blobs, in a folder that is not taken for a version.

        What has not been installed when the block ends, however it ends, is gone: its links would keep the blobs on the disk.
        """
        folder = self.blobs.partial_dir / f"{manifest.digest}.bundle"
        if folder.exists():
            self.fs.remove_tree(folder, "stage.old")
        try:
            self.fs.make_dir(folder)
            for entry in manifest.files:
                target = folder / entry.path
                self.fs.make_dir(target.parent)
                self.fs.link(self.blobs.partial(entry.sha256), target, "stage.file")
            self.fs.write_file(folder / MANIFEST_NAME, manifest.canonical(), "stage.manifest")
            yield folder
        finally:
            if folder.exists():
                self.fs.remove_tree(folder, "stage.discard")

    def install(self, staged: Path, manifest: Manifest) -> Path:
        """Give a verified bundle its name, and return its folder. A damaged one of that name is made whole.

        Raises:
            RefusedError: see :meth:`refuse_conflict`.
        """
        ref = _ref(manifest)
        path = self.path_of(ref)
        self.refuse_conflict(ref)
        there = self.manifest_at(path)
        if path.is_dir() and not path.is_symlink() and (there is None or there.digest == ref.digest):
            self._mend(path, staged, manifest)
        else:
            if os.path.lexists(path):
                self._remove(path, "install.obstacle")
            self.fs.make_dir(path.parent)
            self.fs.rename(staged, path, "install")
        self.note_change(path)
        return path

    def _mend(self, path: Path, staged: Path, manifest: Manifest) -> None:
        """Move a bundle's files over those of a damaged folder, one by one: what is intact there is there at every moment.

        So ``current`` never names less than before, and a process that has a file open keeps it.
        """
        for stray in find_strays(path, manifest):
            self._remove(stray, "mend.stray")
        for name in (*(entry.path for entry in manifest.files), MANIFEST_NAME):
            self.fs.make_dir((path / name).parent)
            self.fs.rename(staged / name, path / name, "mend.file")

    def refuse_conflict(self, ref: Ref, cancel: Cancel | None = None) -> None:
        """Raise ``RefusedError`` VERSION_CONFLICT if another bundle has that name and version, and is whole or needed.

        What is left of one that is neither is no obstacle.
        """
        path = self.path_of(ref)
        there = self.manifest_at(path)
        namesakes = {r.digest for r in self._state.references() if (r.name, r.version) == (ref.name, ref.version)}
        if there is not None and there.digest != ref.digest and not namesakes:
            whole = next(find_damage(path, cancel=cancel), None) is None
            namesakes = {there.digest} if whole else set()
        if namesakes - {ref.digest}:
            raise RefusedError("VERSION_CONFLICT", "is on disk with another digest; versions are immutable", str(ref))

    def note_change(self, path: Path) -> None:
        """Say that a version's folder is not what it was, or turned out to be whole (thread-safe)."""
        with self._mutex:
            self._installed = None
            self.changes[path] += 1

    def _remove(self, path: Path, point: str) -> None:
        if path.is_dir() and not path.is_symlink():
            self.fs.remove_tree(path, point)
        else:
            self.fs.unlink(path, point)

    def drop_downloads(self) -> None:
        """Give back the space of every download, finished or not, that no version needs."""
        self.blobs.release(set())
        self.blobs.collect()

    def uninstall(self, ref: Ref) -> None:
        """Remove a version from the disk."""
        self._uninstall(self.path_of(ref))

    def _uninstall(self, path: Path) -> None:
        self.fs.remove_tree(path, "uninstall")
        with suppress(OSError):
            path.parent.rmdir()  # the model's folder, if that was its last version
        self.note_change(path)

    def retain(self, keep_versions: int) -> list[Ref]:
        """Remove what retention does not keep: all but the newest versions and those that the state or a waiting update needs.

        Folders that are no version, or a damaged one, go too, unless they have the name of one that is needed.

        Returns:
            What was removed.
        """
        needed = {ref.digest for state in (self._state, self._saved) for ref in state.references()}
        needed |= {update.manifest_sha256 for update in self._state.queue}
        versions = self.installed()
        kept = [entry for n, entry in enumerate(versions) if n < keep_versions or entry.ref.digest in needed]
        needed |= {entry.base for entry in kept}
        doomed = [entry.ref for entry in versions[keep_versions:] if entry.ref.digest not in needed]
        known = {entry.path for entry in versions} | {self.path_of(ref) for ref in self._state.references()}
        for path in self.folders():
            if path not in known and path.is_dir() and not path.is_symlink() and self._examine(path) is None:
                log.warning("%s is removed: it is no version, or a damaged one that nothing needs", path)
                self._uninstall(path)
        for ref in doomed:
            self.uninstall(ref)
        self.blobs.collect()
        with self.edit(durable=False) as state:
            on_disk = {entry.ref.digest for entry in self.installed()}
            state.lineage = [ref for ref in state.lineage if ref.digest in on_disk]
            state.calibration = {digest: entry for digest, entry in state.calibration.items() if digest in on_disk}
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
            verify: checks a bundle and returns its manifest, or raises.
            commit: make it the committed version (that is: vouch for it).
        """
        manifest = verify(folder)
        ref = _ref(manifest)
        if not self.has(ref):
            damaged = self.path_of(ref)
            for entry in manifest.files if os.path.lexists(damaged) else ():
                self.blobs.rescue(entry.sha256, entry.size, damaged / entry.path, lambda: False)
            for entry in manifest.files:
                if not self.blobs.claim(entry.sha256, entry.size):
                    self._copy_in(folder / entry.path, entry)
            with self.staged(manifest) as staged:
                verify(staged)
                self.install(staged, manifest)
            self.blobs.release(set())
        with self.edit() as state:
            state.history.append(
                Event(time.time(), "", "", "INSTALLED", ref.version, "", f"adopted from {folder}", ref.name)
            )
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
            manifest = self.manifest_at(path)
            if manifest is None or any((path / entry.path).stat().st_size != entry.size for entry in manifest.files):
                return None
            installed_s = (path / "manifest.json").stat().st_mtime
            base = manifest.base.digest if manifest.base is not None else ""
            return Installed(_ref(manifest), path, manifest.total_bytes, installed_s, manifest.robot_type, base)
        except OSError:
            return None

    def manifest_at(self, path: Path) -> Manifest | None:
        """Return the manifest of a version's folder, complete or not; None if there is none that belongs there."""
        try:
            manifest = load_manifest(path)
            return manifest if self.path_of(_ref(manifest)) == path else None
        except (CheckpointError, StoreError):
            return None

    def _current_ref(self) -> Ref | None:
        link = self.root / "current"
        try:
            target = (self.root / link.readlink()).resolve(strict=True)
        except OSError:
            return None
        entry = self._examine(target) if target.parent.parent == (self.root / "models").resolve() else None
        return entry.ref if entry is not None else None


def _ref(manifest: Manifest) -> Ref:
    return Ref(manifest.name, manifest.version, manifest.digest)


def newest_first(versions: list[str]) -> list[str]:
    """Sort versions by their precedence, highest first."""
    return sorted(versions, key=parse_version, reverse=True)
