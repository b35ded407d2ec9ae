# SPDX-License-Identifier: Apache-2.0
"""The doctor finds a damaged store, changes nothing in it, and does not take its lock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.bundles import make_bundle

from vla_checkpoint import load_manifest, verify_bundle
from vla_doctor.findings import Finding
from vla_doctor.storage import check_store, largest_bundle
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.store import Store
from vla_policy_node.contract.model import Contract, load_contract

CONTRACT = Path(__file__).resolve().parents[2] / "config/sim_arm.contract.yaml"
ROOMY = {"min_free_bytes": 0}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A store with one committed version, as the manager made it and with its manager still running."""
    make_bundle(tmp_path / "factory")
    opened = Store(tmp_path / "store", Filesystem())
    opened.open()
    opened.import_bundle(tmp_path / "factory", lambda path: verify_bundle(path).manifest, commit=True)
    yield tmp_path / "store"
    opened.close()


@pytest.fixture(scope="module")
def contract() -> Contract:
    return load_contract(CONTRACT)


def check(store: Path, contract: Contract | None = None, **parameters: object) -> list[str]:
    return [f.code for f in findings(store, contract, **parameters) if f.code]


def findings(store: Path, contract: Contract | None = None, **parameters: object) -> list[Finding]:
    return check_store(store, {**ROOMY, **parameters}, contract, before_start=False)


def contents(store: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(store)): (p.lstat().st_mtime_ns, p.lstat().st_size)
        for p in store.rglob("*")
        if not p.is_dir()
    }


def test_a_store_in_order_is_well_and_stays_as_it_was(store: Path) -> None:
    before = contents(store)
    assert check(store) == []
    assert contents(store) == before
    assert any("pick_place 1.0.0, complete" in f.text for f in findings(store))


def test_the_largest_bundle_is_the_one_that_the_manifests_say(store: Path, tmp_path: Path) -> None:
    manifest = verify_bundle(store / "current").manifest
    assert largest_bundle(store) == manifest.total_bytes
    assert largest_bundle(tmp_path / "none") == 0


def test_a_folder_that_is_not_there_fails_unless_nothing_was_started_yet(tmp_path: Path) -> None:
    assert check(tmp_path / "none") == ["STORE_MISSING"]
    assert [f.code for f in check_store(tmp_path / "none", None, None, before_start=True)] == [""]
    (tmp_path / "file").write_text("")
    assert [f.code for f in check_store(tmp_path / "file", None, None, before_start=True)] == ["STORE_MISSING"]


def test_a_store_that_cannot_be_written_fails() -> None:
    # /proc takes no file from anybody, root included
    assert "STORE_READ_ONLY" in check(Path("/proc/self/task"))


def test_blobs_on_another_file_system_fail(store: Path) -> None:
    assert Path("/dev/shm").stat().st_dev != store.stat().st_dev
    assert check(store, blob_dir="/dev/shm") == ["STORE_LAYOUT"]


def test_too_little_room_is_reported_before_an_update_needs_it(store: Path) -> None:
    assert check(store, min_free_bytes=1 << 62) == ["DISK_SHORT"]
    manifest = load_manifest(store / "current")
    huge = replace(manifest, version="2.0.0", files=(replace(manifest.files[0], size=1 << 44), *manifest.files[1:]))
    (store / "models/pick_place/2.0.0").mkdir()
    (store / "models/pick_place/2.0.0/manifest.json").write_bytes(huge.canonical())
    assert check(store) == ["DISK_TIGHT"]


def test_current_that_names_a_bundle_with_a_file_missing_fails(store: Path) -> None:
    (store / "current/stats.json").unlink()
    assert check(store) == ["CURRENT_BROKEN"]


def test_current_that_is_truncated_or_dangles_or_goes_in_a_circle_fails(store: Path) -> None:
    weights = store / "current/model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[:-1])
    assert check(store) == ["CURRENT_BROKEN"]
    for target in ("models/pick_place/9.9.9", "current"):
        (store / "current").unlink()
        (store / "current").symlink_to(target)
        assert check(store) == ["CURRENT_BROKEN"]


def test_current_that_is_not_what_was_committed_fails(store: Path) -> None:
    make_bundle(store / "models/pick_place/1.1.0", version="1.1.0", seed=1)
    (store / "current").unlink()
    assert check(store) == ["CURRENT_DIFFERS"]
    (store / "current").symlink_to("models/pick_place/1.1.0")
    assert check(store) == ["CURRENT_DIFFERS"]


def test_a_committed_bundle_that_does_not_fit_the_contract_fails(store: Path, contract: Contract) -> None:
    found = [f for f in findings(store, contract) if f.code]
    assert [f.code for f in found] == ["CURRENT_UNFIT"]
    assert "CHANNELS_MISMATCH" in found[0].text  # two joints; the arm has three


def test_a_state_that_is_damaged_too_new_or_gone_is_reported(store: Path) -> None:
    state = store / "state.json"
    state.write_bytes(state.read_bytes()[:-20])
    assert check(store) == ["STATE_CORRUPT"]
    state.write_text('{"schema": 99}')
    found = [f for f in findings(store) if f.code]
    assert [f.code for f in found] == ["STATE_CORRUPT"] and "STATE_TOO_NEW" in found[0].text
    state.unlink()
    assert check(store) == ["STATE_MISSING"]


def test_interrupted_downloads_that_nobody_resumes_are_reported(store: Path) -> None:
    (store / "partial" / ("ab" * 32)).write_bytes(b"half")
    assert check(store) == ["PARTIALS_LEFT"]


def test_an_empty_store_asks_for_a_first_install(tmp_path: Path) -> None:
    opened = Store(tmp_path / "store", Filesystem())
    opened.open()
    opened.close()
    assert check(tmp_path / "store") == ["CURRENT_MISSING"]
