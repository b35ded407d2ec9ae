# SPDX-License-Identifier: Apache-2.0
"""The store never forgets what is committed, never lets a name escape, and keeps exactly what retention says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.bundles import make_bundle
from support.ota import shared_weights

from vla_checkpoint import CheckpointError, verify_bundle
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import ConfigError, OtaError, StateError, StoreError
from vla_ota_manager.records import Ref, Update
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.state import Block, State
from vla_ota_manager.store.store import Store


def open_store(folder: Path, blob_dir: Path | None = None) -> Store:
    store = Store(folder, Filesystem(), blob_dir)
    store.open()
    return store


def adopt(store: Store, folder: Path, version: str, *, commit: bool = True, **bundle) -> Ref:
    make_bundle(folder / version, version=version, **bundle)
    return store.import_bundle(folder / version, lambda path: verify_bundle(path).manifest, commit=commit)


@pytest.fixture
def store(tmp_path: Path):
    store = open_store(tmp_path / "store")
    yield store
    store.close()


def reopened(store: Store) -> Store:
    store.close()
    return open_store(store.root)


def test_an_adopted_bundle_is_complete_committed_and_current(store: Store, tmp_path: Path) -> None:
    ref = adopt(store, tmp_path, "1.0.0")
    assert (store.root / "current").readlink() == Path("models/pick_place/1.0.0")
    assert verify_bundle(store.root / "current", expected_digest=ref.digest)
    assert list((store.root / "partial").iterdir()) == []
    assert store.state.committed == ref


def test_a_bundle_that_does_not_verify_is_not_adopted(store: Store, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    (tmp_path / "b/config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        store.import_bundle(tmp_path / "b", lambda path: verify_bundle(path).manifest, commit=True)
    assert store.installed() == [] and not (store.root / "current").exists()


def test_files_that_versions_share_are_on_disk_once(store: Store, tmp_path: Path) -> None:
    adopt(store, tmp_path, "1.0.0", tensors=shared_weights())
    adopt(store, tmp_path, "1.1.0", tensors=shared_weights(), horizon=24)
    inodes = {path.stat().st_ino for path in store.root.glob("models/*/*/model.safetensors")}
    assert len(inodes) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"schema": 1}', b"\x00" * 100, b'{"schema": "x"}'])
def test_a_damaged_state_is_rebuilt_with_what_is_committed_and_blocked(
    store: Store, tmp_path: Path, damage: bytes
) -> None:
    old = adopt(store, tmp_path, "1.0.0")
    bad = adopt(store, tmp_path, "1.0.5", commit=False)
    with store.edit() as state:
        state.blocked[bad.digest] = Block(bad, "it shook", 1.0)
    new = adopt(store, tmp_path, "1.1.0")
    store.close()
    (store.root / "state.json").write_bytes(damage)
    store = open_store(store.root)
    assert store.state.committed == new and store.state.previous == old
    assert bad.digest in store.state.blocked
    assert store.state.error_code == "STATE_CORRUPT" and store.recovery_notes
    assert [path.read_bytes() for path in store.root.glob("state.json.corrupt-*")] == [damage]
    assert (store.root / "current").resolve().name == "1.1.0"
    again = reopened(store)
    assert again.state.committed == new and not again.recovery_notes
    again.close()


@pytest.mark.parametrize("lost", ["state.json", "both"])
def test_a_lost_state_is_rebuilt_from_current(store: Store, tmp_path: Path, lost: str) -> None:
    ref = adopt(store, tmp_path, "1.0.0")
    (store.root / "state.json").unlink()
    if lost == "both":
        (store.root / "state.json.old").unlink(missing_ok=True)
    store = reopened(store)
    assert store.state.committed == ref
    store.close()


def test_a_state_of_a_later_version_is_left_alone(store: Store, tmp_path: Path) -> None:
    adopt(store, tmp_path, "1.0.0")
    store.close()
    path = store.root / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    before = path.read_bytes()
    with pytest.raises(StateError, match="STATE_TOO_NEW"):
        open_store(store.root)
    assert path.read_bytes() == before and (store.root / "current").resolve().name == "1.0.0"


@pytest.mark.parametrize("target", ["models/pick_place/9.9.9", "/etc", "../..", None])
def test_current_is_repaired_after_the_state(store: Store, tmp_path: Path, target: str | None) -> None:
    adopt(store, tmp_path, "1.0.0")
    (store.root / "current").unlink()
    if target is not None:
        (store.root / "current").symlink_to(target)
    store = reopened(store)
    assert (store.root / "current").resolve() == (store.root / "models/pick_place/1.0.0").resolve()
    store.close()


def test_a_committed_bundle_that_is_gone_falls_back_to_one_that_was_committed(store: Store, tmp_path: Path) -> None:
    old = adopt(store, tmp_path, "1.0.0")
    new = adopt(store, tmp_path, "1.1.0")
    store.uninstall(new)
    store = reopened(store)
    assert store.state.committed == old and store.state.error_code == "MODEL_NOT_FOUND"
    assert (store.root / "current").resolve().name == "1.0.0"
    store.close()


def test_half_made_things_are_swept_and_downloads_kept(store: Store, tmp_path: Path) -> None:
    adopt(store, tmp_path, "1.0.0")
    partial = store.blobs.partial_dir / ("a" * 64)
    partial.write_bytes(b"half")
    (store.blobs.partial_dir / f"{'b' * 64}.bundle/sub").mkdir(parents=True)
    (store.root / "models/pick_place/.doomed-0.9.0/x").mkdir(parents=True)
    (store.root / "state.json.new").write_bytes(b"half")
    (store.root / "models/pick_place/0.9.0").mkdir()  # not by us: no manifest
    store = reopened(store)
    assert partial.read_bytes() == b"half"
    assert not list(store.root.glob("**/*.bundle")) and not list(store.root.glob("**/.doomed*"))
    assert not list(store.root.glob("*.new"))
    assert [entry.ref.version for entry in store.installed()] == ["1.0.0"]
    store.close()


def test_retention_keeps_the_newest_and_what_the_state_needs(store: Store, tmp_path: Path) -> None:
    refs = {v: adopt(store, tmp_path, v, seed=i) for i, v in enumerate(("1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"))}
    with store.edit() as state:
        state.pinned = [refs["1.0.0"]]
    assert [ref.version for ref in store.retain(1)] == ["1.2.0", "1.1.0"]
    assert {entry.ref.version for entry in store.installed()} == {"1.4.0", "1.3.0", "1.0.0"}
    blobs = {path.stat().st_nlink for path in store.blobs.blob_dir.iterdir()}
    assert blobs and 1 not in blobs  # every blob left belongs to a version
    with store.edit() as state:
        state.pinned = []
    store.retain(1)
    assert {entry.ref.version for entry in store.installed()} == {"1.4.0", "1.3.0"}


def test_robots_with_shared_blobs_do_not_take_each_others(tmp_path: Path) -> None:
    first = open_store(tmp_path / "a", tmp_path / "shared")
    second = open_store(tmp_path / "b", tmp_path / "shared")
    ref = adopt(first, tmp_path, "1.0.0")
    for entry in verify_bundle(first.path_of(ref)).manifest.files:
        assert second.blobs.claim(entry.sha256, entry.size)
    first.uninstall(ref)
    assert first.blobs.collect() == 0  # the other one holds them
    second.blobs.release(set())
    assert second.blobs.collect() > 0 and list((tmp_path / "shared/sha256").iterdir()) == []
    first.close()
    second.close()


def test_a_second_manager_is_kept_out_until_the_first_ends(store: Store) -> None:
    with pytest.raises(StoreError, match="STORE_LOCKED"):
        open_store(store.root)
    store.close()
    open_store(store.root).close()


@pytest.mark.parametrize(
    ("name", "version"),
    [("..", "1.0.0"), ("a/b", "1.0.0"), (".hidden", "1.0.0"), ("", "1.0.0"), ("a", "../1"), ("a", "1.0"), ("a\n", "1.0.0"),
     ("a", "1.0.0\n"), ("a" * 200, "1.0.0"), ("a", "latest"), ("a.", "1.0.0")],
)  # fmt: skip
def test_names_that_could_leave_the_store_are_refused(store: Store, name: str, version: str) -> None:
    with pytest.raises(StoreError, match="NAME_INVALID"):
        store.path_of(Ref(name, version, "0" * 64))


def test_a_state_document_survives_its_bytes(tmp_path: Path, store: Store) -> None:
    ref = adopt(store, tmp_path, "1.0.0")
    state = State(
        committed=ref, pinned=[ref], queue=[Update("u", "http://x")], blocked={ref.digest: Block(ref, "r", 1.0)}
    )
    assert State.from_bytes(state.to_bytes()) == state


def test_an_edit_that_raises_changes_nothing(store: Store) -> None:
    with pytest.raises(OtaError), store.edit() as state:
        state.message = "half"
        raise OtaError("X", "stop")
    assert store.state.message == ""


def test_a_folder_that_cannot_be_written_is_a_coded_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="STORE_IO"):
        open_store(tmp_path / "file/store")


@pytest.mark.parametrize(
    "settings",
    [
        {"store_dir": ""}, {"retries": -1}, {"alpha": 0.0}, {"alpha": float("nan")}, {"swap_at": "SOMETIME"},
        {"keep_versions": 0}, {"keep_versions": True}, {"trial_lease_s": 1.0, "status_period_s": 1.0},
        {"tolerated_exceedance": 0.04}, {"allowed_sources": "http://x"}, {"backoff_s": "1"},
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_refused_by_name(settings: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        OtaConfig(**{"store_dir": "/x", **settings})
    assert caught.value.where in settings
