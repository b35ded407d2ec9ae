# SPDX-License-Identifier: Apache-2.0
"""``vla-checkpoint fsck STORE``: what a disk has done to a store is found, and made whole as far as any name still has it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.bundles import flip_last_byte, make_bundle
from support.ota import Robot, shared_weights
from support.power_loss import PowerLoss, PowerLossFilesystem

from vla_checkpoint import load_manifest
from vla_ota_manager.states import UpdateState
from vla_ota_manager.store import fsck
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.store import Store
from vla_policy_node.desk.cli import main
from vla_sim.checkpoint_server import Behaviour

WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"
VERSION = "models/pick_place/1.0.0"


def run(store: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    """Return exit status and report."""
    capsys.readouterr()
    status = main(["fsck", str(store), "--json", *options])
    return status, json.loads(capsys.readouterr().out)


def replace(path: Path, data: bytes) -> None:
    """Put another file in a file's place; its blob stays as it was."""
    path.unlink()
    path.write_bytes(data)


def to_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "weights flipped": (lambda path: flip_last_byte(path / WEIGHTS), [WEIGHTS]),
    "all flipped": (lambda path: [flip_last_byte(path / n) for n in (WEIGHTS, CONFIG)], [CONFIG, WEIGHTS]),
    "weights missing": (lambda path: (path / WEIGHTS).unlink(), []),
    "config replaced": (lambda path: replace(path / CONFIG, bytes((path / CONFIG).stat().st_size)), []),
    "config a link": (lambda path: to_link(path / CONFIG), []),
    "a stray file": (lambda path: (path / "notes.txt").write_text("x"), []),
    "manifest garbled": (lambda path: replace(path / MANIFEST, b"\xff" * 100), [MANIFEST]),
    "folder gone": (lambda path: shutil.rmtree(path), ["all of it"]),
}
"""What is done to a version, and what of it no name on the disk has any more."""


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_is_made_whole_or_named_as_lost_and_the_next_run_finds_the_same(
    robot: Robot, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, lost = DAMAGE[kind]
    for number, version in enumerate(("0.9.0", "1.0.0", "1.1.0")):
        robot.adopt(version, horizon=16 + number)  # a config of its own: versions share what is the same
    assert run(robot.store_dir, capsys)[0] == 0
    damage(robot.store_dir / VERSION)
    status, report = run(robot.store_dir, capsys)
    found = {entry["version"]: entry for entry in report["versions"]}
    assert {name: entry["role"] for name, entry in found.items()} == {
        "pick_place 0.9.0": "", "pick_place 1.0.0": "previous", "pick_place 1.1.0": "committed",
    }  # fmt: skip
    assert [entry["state"] for entry in found.values()].count("whole") == 2
    damaged = found["pick_place 1.0.0"]
    assert damaged["state"] == ("damaged" if lost else "repaired") and sorted(damaged["fetch"]) == lost
    assert damaged["problems"] and status == bool(lost)
    status, again = run(robot.store_dir, capsys)
    assert status == bool(lost) and sorted(path for entry in again["versions"] for path in entry["fetch"]) == lost
    assert robot.left_over() == [] or lost


def test_what_is_named_as_lost_is_all_that_the_next_offer_fetches(
    robot: Robot, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = robot.adopt("1.0.0")
    robot.adopt("1.1.0")
    flip_last_byte(robot.store_dir / VERSION / WEIGHTS)
    replace(robot.store_dir / VERSION / CONFIG, b"{}")
    status, report = run(robot.store_dir, capsys)
    assert status == 1 and report["versions"][0]["fetch"] == [WEIGHTS]
    robot.start()
    robot.install("1.0.0", UpdateState.INSTALLED, activate=False)
    served = {path for path, count in robot.server.served.items() if count and "/blobs/" in path}
    assert served == {f"/blobs/sha256/{manifest.file(WEIGHTS).sha256}"}
    robot.stop()
    assert run(robot.store_dir, capsys)[0] == 0


def test_a_damaged_state_and_a_lost_link_are_made_again(robot: Robot, capsys: pytest.CaptureFixture[str]) -> None:
    robot.adopt("1.0.0")
    (robot.store_dir / "state.json").write_text("{")
    status, report = run(robot.store_dir, capsys)
    assert status == 0 and any("rebuilt" in note for note in report["repaired"])
    (robot.store_dir / "current").unlink()
    assert run(robot.store_dir, capsys)[0] == 0 and robot.current_version() == "1.0.0"


def test_a_download_goes_on_where_it_was_and_a_damaged_blob_is_not_taken_for_one(
    robot: Robot, capsys: pytest.CaptureFixture[str]
) -> None:
    robot.adopt("1.0.0")
    manifest = robot.publish("1.1.0", tensors=shared_weights(size=100_000), horizon=24)
    robot.server.behave(manifest.file(WEIGHTS).sha256, Behaviour(stall_after=200_000), times=1)
    engine = robot.start()
    update_id = robot.offer("1.1.0")
    robot.until(lambda: engine.status().bytes_done >= 200_000)
    robot.stop()
    blob = robot.store_dir / "blobs/sha256" / manifest.file(CONFIG).sha256
    flip_last_byte(blob)
    status, report = run(robot.store_dir, capsys)
    assert status == 0 and manifest.file(CONFIG).sha256 in str(report["repaired"]) and not blob.exists()
    robot.start()
    robot.ended(update_id, UpdateState.COMMITTED)
    served = robot.server.served
    assert served[f"/blobs/sha256/{manifest.file(WEIGHTS).sha256}"] == manifest.file(WEIGHTS).size


def test_a_store_whose_manager_runs_is_left_alone(robot: Robot, capsys: pytest.CaptureFixture[str]) -> None:
    robot.adopt("1.0.0")
    robot.start()
    flip_last_byte(robot.store_dir / VERSION / CONFIG)
    before = (robot.store_dir / "state.json").read_bytes()
    status, report = run(robot.store_dir, capsys)
    assert (status, report["code"]) == (1, "STORE_LOCKED") and "manager" in report["reason"]
    assert (robot.store_dir / "state.json").read_bytes() == before


def test_what_is_no_store_or_of_somebody_else_is_refused_and_nothing_is_made_there(
    robot: Robot, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = robot.folder / "photos"
    folder.mkdir()
    for place in (folder, robot.folder / "nowhere"):
        status, report = run(place, capsys)
        assert (status, report["code"]) == (1, "STORE_LAYOUT")
    assert not list(folder.iterdir()) and not (robot.folder / "nowhere").exists()
    robot.adopt("1.0.0")
    monkeypatch.setattr(os, "geteuid", lambda: robot.store_dir.stat().st_uid + 1)
    status, report = run(robot.store_dir, capsys)
    assert (status, report["code"]) == (1, "STORE_IO") and "manager's user" in report["reason"]


def test_shared_blobs_have_to_be_named(robot: Robot, capsys: pytest.CaptureFixture[str]) -> None:
    shared = robot.folder / "shared"
    robot.settings = {"blob_dir": str(shared)}
    robot.adopt("1.0.0")
    status, report = run(robot.store_dir, capsys)
    assert (status, report["code"]) == (1, "STORE_LAYOUT") and "--blob-dir" in report["reason"]
    replace(robot.store_dir / VERSION / CONFIG, b"{}")
    status, report = run(robot.store_dir, capsys, "--blob-dir", str(shared))
    assert status == 0 and report["versions"][0]["state"] == "repaired"


def test_power_lost_at_any_step_of_a_repair_costs_nothing_that_was_intact(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    cut, ended = 0, False
    while not ended:
        cut += 1
        filesystem = damaged_disk(tmp_path / f"disk-{cut}", tmp_path / "bundle")
        filesystem.steps, filesystem.cut = 0, cut
        store = Store(filesystem.root, filesystem)
        try:
            store.open()
            ended = fsck.check_store(store)["ok"]
            after = filesystem.root
        except PowerLoss:
            after = tmp_path / f"after-{cut}"
            filesystem.after(after, lambda count, cut=cut: cut % count)
        finally:
            store.close()
        store = Store(after, Filesystem())
        store.open()
        assert fsck.check_store(store)["ok"], cut
        store.close()
        assert store.state.committed is not None and store.has(store.state.committed)
    assert cut > 20


def damaged_disk(root: Path, bundle: Path) -> PowerLossFilesystem:
    """Return a disk whose store has a version that lacks a file which is still among the blobs."""
    root.mkdir()
    filesystem = PowerLossFilesystem(root)
    store = Store(root, filesystem)
    store.open()
    store.import_bundle(bundle, load_manifest, commit=True)
    store.close()
    lost = root / VERSION / CONFIG
    lost.unlink()
    filesystem._flush_dir(lost.parent)
    return filesystem


def test_people_read_it_by_line(robot: Robot, capsys: pytest.CaptureFixture[str]) -> None:
    robot.adopt("1.0.0")
    flip_last_byte(robot.store_dir / VERSION / WEIGHTS)
    capsys.readouterr()
    assert main(["fsck", str(robot.store_dir)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "DAMAGED  pick_place 1.0.0 (committed)" and lines[-1].endswith(f"fetch again: {WEIGHTS}")
