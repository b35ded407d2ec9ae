# SPDX-License-Identifier: Apache-2.0
"""Power is lost at any step of anything that the store does: what was acknowledged is there, and whole."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.bundles import make_bundle
from support.ota import shared_weights
from support.power_loss import PowerLoss, PowerLossFilesystem

from vla_checkpoint import Manifest, load_manifest, sha256_bytes, verify_bundle
from vla_ota_manager.records import Ref
from vla_ota_manager.store import blobs, parts
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.state import Block
from vla_ota_manager.store.store import Store

VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")
DOWNLOAD = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four versions; the first two have the same weights, so that they share a blob."""
    folder = tmp_path_factory.mktemp("bundles")
    for number, version in enumerate(VERSIONS):
        files = {"tokenizer/words.txt": f"{version}".encode()}
        weights = shared_weights(number // 2, 300)
        make_bundle(folder / version, version=version, tensors=weights, horizon=16 + number, files=files)
    return folder


@dataclass
class Promised:
    """What the store has acknowledged, and what the operation under way may have changed already."""

    committed: list[Ref | None] = field(default_factory=lambda: [None])
    """The last one, and those that may follow it."""
    blocked: set[str] = field(default_factory=set)
    pinned: set[Ref] = field(default_factory=set)
    unpinning: set[Ref] = field(default_factory=set)
    fetched: bool = False


class Worker:
    """Does to a store what the engine does, and keeps the promises."""

    def __init__(self, bundles: Path, disk: PowerLossFilesystem) -> None:
        self.bundles, self.disk = bundles, disk
        self.promised = Promised()
        self.store = self._opened()

    def _opened(self) -> Store:
        store = Store(self.disk.root, self.disk)
        store.open()
        return store

    def close(self) -> None:
        self.store.close()

    @contextmanager
    def committing(self, ref: Ref | None) -> Iterator[None]:
        self.promised.committed = [self.promised.committed[-1], ref]
        yield
        self.promised.committed = [ref]

    # -- operations ---------------------------------------------------------------------------------------------------------

    def adopt(self, number: int) -> None:
        folder = self.bundles / VERSIONS[number]
        manifest = load_manifest(folder)
        ref = Ref(manifest.name, manifest.version, manifest.digest)
        with self.committing(ref):
            self.store.import_bundle(folder, _verified, commit=True)

    def install(self, number: int) -> None:
        self.store.import_bundle(self.bundles / VERSIONS[number], _verified, commit=False)

    def roll_back(self, _: int) -> None:
        """Block what is committed and go back to what was before."""
        state = self.store.state
        if state.committed is None or state.previous is None:
            return
        bad, target = state.committed, state.previous
        with self.committing(target):
            with self.store.edit() as draft:
                draft.blocked[bad.digest] = Block(bad, "it shook", 1.0)
                draft.note_rolled_back(target)
            self.promised.blocked.add(bad.digest)
            self.store.point_current(target)

    def pin(self, number: int) -> None:
        on_disk = self.store.installed()
        if on_disk:
            ref = on_disk[number % len(on_disk)].ref
            with self.store.edit() as draft:
                draft.pinned = [*(old for old in draft.pinned if old != ref), ref]
            self.promised.pinned.add(ref)

    def unpin(self, _: int) -> None:
        self.promised.unpinning |= self.promised.pinned
        self.promised.pinned.clear()
        with self.store.edit() as draft:
            draft.pinned = []
        self.promised.unpinning.clear()

    def retain(self, number: int) -> None:
        self.store.retain(1 + number % 3)

    def fetch(self, number: int) -> None:
        """Download a file, flushing now and then; it is finished, or left for later."""
        sha256, size, piece = sha256_bytes(DOWNLOAD), len(DOWNLOAD), 1024
        if self.store.blobs.claim(sha256, size):
            return
        offset, end = self.store.blobs.info(sha256, size).parts.front(), size if number % 2 else size // 2
        with self.disk.append(self.store.blobs.partial(sha256), offset) as file:
            self.store.blobs.forget_parts(sha256)
            file.flush()
            self.store.blobs.note(sha256, offset, '"tag"')
            while offset < end:
                file.write(DOWNLOAD[offset : offset + piece])
                offset += len(DOWNLOAD[offset : offset + piece])
                if offset % (3 * piece) == 0:
                    file.flush()
                    self.store.blobs.note(sha256, offset, '"tag"')
            file.flush()
            self.store.blobs.note(sha256, offset, '"tag"')
        if offset == size:
            self.store.blobs.finish(sha256)
            self.promised.fetched = True

    def fetch_parts(self, number: int) -> None:
        """Download a file in several places by turns, flushing now and then; it is finished, or left for later."""
        sha256, size, piece = sha256_bytes(DOWNLOAD), len(DOWNLOAD), 512
        if self.store.blobs.claim(sha256, size):
            return
        known = self.store.blobs.info(sha256, size).parts
        with self.store.blobs.open_parts(sha256, known) as file:
            for turn in range(8 if number % 2 else 3):
                file.flush()
                self.store.blobs.note(sha256, known.front(), '"tag"', known)
                for part in reversed(range(len(known.there))):
                    start, end = known.reached(part), known.end(part)
                    file.write(part, DOWNLOAD[start : min(end, start + piece * (1 + (part + turn) % 2))])
            file.flush()
            self.store.blobs.note(sha256, known.front(), '"tag"', known)
        if known.total == size:
            self.store.blobs.finish(sha256)
            self.promised.fetched = True

    def forget_downloads(self, _: int) -> None:
        self.promised.fetched = False
        self.store.drop_downloads()

    def restart(self, _: int) -> None:
        self.store.close()
        self.store = self._opened()


def _verified(folder: Path) -> Manifest:
    return verify_bundle(folder).manifest


OPERATIONS: tuple[Callable[[Worker, int], None], ...] = (
    Worker.adopt, Worker.install, Worker.roll_back, Worker.pin, Worker.unpin, Worker.retain, Worker.fetch,
    Worker.fetch_parts, Worker.forget_downloads, Worker.restart,
)  # fmt: skip
plans = st.lists(st.tuples(st.sampled_from(range(len(OPERATIONS))), st.integers(0, 3)), min_size=1, max_size=7)


def run(bundles: Path, root: Path, plan: list[tuple[int, int]], cut: int = 0) -> tuple[PowerLossFilesystem, Promised]:
    """Carry operations out until power is lost; return the disk, and what was promised."""
    root.mkdir()
    disk, promised, worker = PowerLossFilesystem(root, cut), Promised(), None
    try:
        worker = Worker(bundles, disk)
        promised = worker.promised
        for operation, number in plan:
            OPERATIONS[operation](worker, number)
    except PowerLoss:
        pass
    finally:
        if worker is not None:
            worker.close()
    return disk, promised


def check(root: Path, promised: Promised) -> None:
    """Open a store after a loss of power and hold it against what was promised."""
    store = Store(root, Filesystem())
    store.open()
    try:
        state, current = store.state, root / "current"
        assert state.committed in promised.committed, f"{state.committed}; promised: {promised.committed}"
        if state.committed is not None:
            assert current.resolve() == store.path_of(state.committed).resolve()
            verify_bundle(current, expected_digest=state.committed.digest)
        assert promised.blocked <= state.blocked.keys()
        assert (
            promised.pinned
            <= set(state.pinned)
            <= promised.pinned | promised.unpinning | {e.ref for e in store.installed()}
        )
        on_disk = {entry.ref: entry.path for entry in store.installed()}
        for path in store.folders():
            verify_bundle(path)
        for ref in {*state.references(), *promised.pinned}:
            assert ref in on_disk, f"{ref} is gone"
        sha256, size = sha256_bytes(DOWNLOAD), len(DOWNLOAD)
        there = store.blobs.info(sha256, size).parts
        if promised.fetched:
            assert store.blobs.claim(sha256, size), "it would be fetched again"
        if store.blobs.claim(sha256, size):
            assert store.blobs.blob(sha256).read_bytes() == DOWNLOAD
        elif there.total:
            data = store.blobs.partial(sha256).read_bytes()
            for part in range(len(there.there)):
                start, end = part * parts.PART_BYTES, there.reached(part)
                assert data[start:end] == DOWNLOAD[start:end], "bytes that were never flushed count"
        assert not store.recovery_notes, store.recovery_notes
    finally:
        store.close()


@settings(
    max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    derandomize=True,
)  # fmt: skip
@given(plan=plans, where=st.floats(0.0, 1.0), seed=st.integers(0, 2**32 - 1))
def test_whatever_was_not_flushed_is_lost_what_was_acknowledged_is_there_and_whole(
    bundles: Path, plan: list[tuple[int, int]], where: float, seed: int
) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_BYTES", 4096)
        steps = run(bundles, Path(folder) / "whole", plan)[0].steps
        disk, promised = run(bundles, Path(folder) / "cut", plan, 1 + int(where * steps))
        patch.setattr(blobs, "_BOOT_ID", Path(folder) / "another boot")
        (Path(folder) / "another boot").write_text("2")
        for number in range(4):
            disk.after(Path(folder) / f"after-{number}", chance.randrange)
            check(Path(folder) / f"after-{number}", promised)
