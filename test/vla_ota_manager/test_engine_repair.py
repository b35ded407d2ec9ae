# SPDX-License-Identifier: Apache-2.0
"""A damaged version on disk is repaired when it is offered again: whatever is damaged, and nothing else, is fetched."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bundles import flip_last_byte
from support.filesystems import ActingFilesystem
from support.ota import Robot, shared_weights

from vla_checkpoint import verify_bundle
from vla_ota_manager.states import UpdateState
from vla_sim.checkpoint_server import Behaviour

S = UpdateState
WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"


def cut(path: Path, size: int) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate(size)


def replace(path: Path, data: bytes) -> None:
    """Put another file in a file's place; its blob stays as it was."""
    path.unlink()
    path.write_bytes(data)


def to_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)
    (path / "inside/file").write_bytes(b"x")


def to_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


def to_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"")


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def no_blobs(path: Path) -> None:
    (path / CONFIG).unlink()
    for blob in (path.parents[2] / "blobs/sha256").iterdir():
        blob.unlink()


DAMAGE: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "weights truncated": (lambda path: cut(path / WEIGHTS, 100), {WEIGHTS}),
    "weights emptied": (lambda path: cut(path / WEIGHTS, 0), {WEIGHTS}),
    "weights grown": (lambda path: cut(path / WEIGHTS, 1 << 20), {WEIGHTS}),
    "weights flipped": (lambda path: flip_last_byte(path / WEIGHTS), {WEIGHTS}),
    "config flipped": (lambda path: flip_last_byte(path / CONFIG), {CONFIG}),
    "two files flipped": (lambda path: [flip_last_byte(path / n) for n in (WEIGHTS, CONFIG)], {WEIGHTS, CONFIG}),
    "weights missing": (lambda path: (path / WEIGHTS).unlink(), set()),
    "weights renamed": (lambda path: (path / WEIGHTS).rename(path / "model.old"), set()),
    "config replaced": (lambda path: replace(path / CONFIG, b"{}"), set()),
    "config replaced, same size": (lambda path: replace(path / CONFIG, bytes((path / CONFIG).stat().st_size)), set()),
    "config a folder": (lambda path: to_folder(path / CONFIG), set()),
    "config a link": (lambda path: to_link(path / CONFIG), set()),
    "files writable": (lambda path: [f.chmod(0o644) for f in path.iterdir()], set()),
    "a stray file": (lambda path: (path / "notes.txt").write_text("x"), set()),
    "a stray folder": (lambda path: (path / "notes/a").mkdir(parents=True), set()),
    "manifest missing": (lambda path: (path / MANIFEST).unlink(), set()),
    "manifest emptied": (lambda path: cut(path / MANIFEST, 0), set()),
    "manifest garbled": (lambda path: replace(path / MANIFEST, b"\xff" * 100), set()),
    "manifest of another size": (lambda path: cut(path / MANIFEST, 200), set()),
    "folder emptied": (empty, set()),
    "folder a file": (to_file, set()),
    "folder gone": (shutil.rmtree, set()),
    "blobs gone": (no_blobs, {CONFIG}),
}


def served(robot: Robot, version: str) -> set[str]:
    """Return which files of a version were fetched, once each and whole, since the server has been counting."""
    entries = robot.manifests[version].files
    counts = {entry.path: robot.server.served[f"/blobs/sha256/{entry.sha256}"] for entry in entries}
    assert all(count in (0, robot.manifests[version].file(path).size) for path, count in counts.items()), counts
    return {path for path, count in counts.items() if count}


def check_whole(robot: Robot, version: str) -> None:
    robot.until(lambda: robot.left_over() == [])
    folder = robot.store_dir / "models/pick_place" / version
    assert verify_bundle(folder, expected_digest=robot.manifests[version].digest)
    for entry in robot.manifests[version].files:
        blob = robot.store_dir / "blobs/sha256" / entry.sha256
        assert blob.samefile(folder / entry.path)


CASES = [*zip(DAMAGE, itertools.cycle(("1.0.0", "1.1.0")), itertools.cycle((False, False, True, True)))]
"""Each kind of damage once: of what is committed and of what is installed, while the manager runs and before it starts."""


@pytest.mark.parametrize(("kind", "version", "restart"), CASES)
def test_a_damaged_version_that_is_offered_again_is_repaired_and_only_what_is_damaged_is_fetched(
    robot: Robot, kind: str, version: str, restart: bool
) -> None:
    damage, lost = DAMAGE[kind]
    robot.adopt("1.0.0")
    robot.start()
    if version != "1.0.0":
        robot.publish(version)
        robot.install(version, S.INSTALLED, activate=False)
        robot.rest()
    damage(robot.store_dir / "models/pick_place" / version)
    if restart:
        robot.stop()
        robot.start()
    robot.server.served.clear()
    robot.install(version, update_id="again")
    check_whole(robot, version)
    assert served(robot, version) == lost
    assert robot.current_version() == robot.engine.status().committed_version == version


def test_a_version_that_is_damaged_again_is_repaired_again(robot: Robot) -> None:
    robot.adopt("1.0.0")
    robot.start()
    for attempt in range(3):
        flip_last_byte(robot.store_dir / "models/pick_place/1.0.0" / WEIGHTS)
        robot.install("1.0.0", update_id=f"again-{attempt}")
        check_whole(robot, "1.0.0")


def test_a_repair_that_cannot_be_finished_now_leaves_what_is_intact(robot: Robot) -> None:
    manifest = robot.adopt("1.0.0")
    robot.settings = {"retries": 0}
    robot.start()
    folder = robot.store_dir / "models/pick_place/1.0.0"
    cut(folder / WEIGHTS, 100)
    robot.server.behave("/blobs/", Behaviour(status=503))
    assert robot.install("1.0.0", S.FAILED, update_id="first").error_code == "HTTP_STATUS"
    assert (folder / CONFIG).stat().st_size == manifest.file(CONFIG).size and robot.current_version() == "1.0.0"
    robot.server.be_good()
    robot.install("1.0.0", update_id="second")
    assert served(robot, "1.0.0") == {WEIGHTS}
    check_whole(robot, "1.0.0")


def test_a_file_that_versions_share_is_fetched_once_for_both(robot: Robot) -> None:
    """Hard links: what damages the one damages the other."""
    robot.adopt("1.0.0", tensors=shared_weights())
    robot.publish("1.1.0", tensors=shared_weights(), horizon=24)
    robot.start()
    robot.install("1.1.0")
    flip_last_byte(robot.store_dir / "models/pick_place/1.0.0" / WEIGHTS)
    robot.server.served.clear()
    robot.install("1.1.0", update_id="new")
    robot.install("1.0.0", S.INSTALLED, update_id="old", activate=False)
    check_whole(robot, "1.1.0")
    check_whole(robot, "1.0.0")
    assert served(robot, "1.0.0") == {WEIGHTS}


def test_another_bundle_that_is_whole_or_needed_is_never_overwritten(robot: Robot) -> None:
    robot.adopt("1.0.0")
    robot.publish("1.1.0", seed=1)
    robot.start()
    robot.install("1.1.0", S.INSTALLED, activate=False)
    robot.engine.pin("1.1.0")
    first = robot.manifests["1.1.0"]
    for path in (robot.folder / "bundle-1.1.0", robot.registry / "pick_place/1.1.0"):
        path.rename(path.with_name("old-" + path.name))
    robot.publish("1.1.0", seed=2)
    folder = robot.store_dir / "models/pick_place/1.1.0"
    for number, damage in enumerate((lambda: None, lambda: cut(folder / WEIGHTS, 10), (folder / MANIFEST).unlink)):
        damage()
        outcome = robot.install("1.1.0", S.REJECTED, update_id=f"other-{number}")
        robot.rest()
        assert outcome.error_code == "VERSION_CONFLICT", outcome
    assert (folder / CONFIG).exists() and not (folder / MANIFEST).exists()
    robot.engine.pin("1.1.0", unpin=True)
    robot.install("1.1.0", S.INSTALLED, update_id="unpinned", activate=False)  # beyond recognition, and nobody needs it
    assert robot.manifests["1.1.0"].digest != first.digest
    check_whole(robot, "1.1.0")


def test_a_bundle_that_the_disk_damages_each_time_is_rejected(robot: Robot) -> None:
    robot.adopt("1.0.0")
    robot.publish("1.1.0")
    filesystem = ActingFilesystem("", lambda: None)
    weights = robot.store_dir / "partial" / f"{robot.manifests['1.1.0'].digest}.bundle" / WEIGHTS

    def rot(name: str) -> None:
        if name == "stage.manifest.after_rename":
            flip_last_byte(weights)
            weights.chmod(0o444)

    filesystem.point = rot  # type: ignore[method-assign]
    robot.start(filesystem=filesystem)
    assert robot.install("1.1.0", S.REJECTED).error_code == "DIGEST_FILE"
    assert robot.server.served[f"/blobs/sha256/{robot.manifests['1.1.0'].file(WEIGHTS).sha256}"] > 0
    robot.until(lambda: robot.left_over() == [])


def test_folders_that_are_no_version_go_when_an_update_ends(robot: Robot) -> None:
    robot.adopt("1.0.0")
    models = robot.store_dir / "models"
    (models / "pick_place/0.9.0").mkdir()
    (models / "other/copy of 1.0.0").mkdir(parents=True)
    (models / "other/copy of 1.0.0/file").write_bytes(b"x")
    robot.publish("1.1.0")
    robot.start()
    robot.install("1.1.0")
    robot.rest()
    assert sorted(path.name for path in models.glob("*/*")) == ["1.0.0", "1.1.0"]
    assert not (models / "other").exists()


def test_a_needed_version_that_is_damaged_is_not_removed(robot: Robot) -> None:
    robot.adopt("1.0.0")
    for version in ("1.1.0", "1.2.0"):
        robot.publish(version)
    robot.settings = {"keep_versions": 1}
    robot.start()
    robot.install("1.1.0")
    folder = robot.store_dir / "models/pick_place/1.0.0"
    (folder / MANIFEST).unlink()
    robot.stop()
    robot.start()
    robot.install("1.2.0", S.INSTALLED, activate=False)
    robot.rest()
    assert (folder / WEIGHTS).exists()
