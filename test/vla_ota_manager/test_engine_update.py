# SPDX-License-Identifier: Apache-2.0
"""An update goes from its offer to COMMITTED, or ends with a code and leaves the robot with the policy it had."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import struct
import time

import pytest
from support.bundles import flip_last_byte
from support.filesystems import UnwritableFilesystem
from support.ota import Robot, shared_weights

from vla_ota_manager.states import UpdateState
from vla_sim.checkpoint_server import Behaviour

S = UpdateState


def test_first_install_is_committed_after_clean_chunks(robot: Robot) -> None:
    robot.publish("1.0.0")
    robot.start()
    assert robot.current_version() == ""
    robot.install("1.0.0")
    assert robot.current_version() == "1.0.0"
    assert robot.policy.look()["active"]["version"] == "1.0.0"
    assert robot.policy.look()["lease"] is None


def test_update_runs_through_every_state_and_keeps_current_until_the_commit(robot: Robot) -> None:
    robot.feeding = False
    robot.begin()
    update_id = robot.offer("1.1.0")
    robot.reach(S.TRIAL)
    assert robot.current_version() == "1.0.0"
    status = robot.engine.status()
    assert (status.committed_version, status.trial_version, status.rollback_ready) == ("1.0.0", "1.1.0", 2)
    robot.feeding = True
    robot.ended(update_id, S.COMMITTED)
    path = ["CHECKING", "FETCHING", "VERIFYING", "INSTALLED", "PREPARING", "SWAPPING", "TRIAL", "COMMITTED"]
    robot.until(lambda: robot.trail(update_id) == path)  # the event follows the state
    assert robot.current_version() == "1.1.0"
    assert robot.engine.status().previous_version == "1.0.0"


def test_trial_without_exposure_stays_open_and_says_so(robot: Robot) -> None:
    robot.feeding = False
    robot.try_out()
    robot.until(lambda: "no exposure yet" in robot.engine.status().trial_message)
    robot.go_round()
    status = robot.engine.status()
    assert status.state is S.TRIAL and "no exposure yet" in status.trial_message


def test_only_what_is_missing_is_fetched(robot: Robot, server) -> None:
    robot.adopt("1.0.0", tensors=shared_weights())
    new = robot.publish("1.1.0", tensors=shared_weights(), horizon=24)
    robot.start()
    outcome = robot.install("1.1.0")
    weights = new.file("model.safetensors")
    assert server.served[f"/blobs/sha256/{weights.sha256}"] == 0
    manifest_bytes = len(new.canonical())
    assert outcome.bytes_downloaded == sum(server.served.values()) > manifest_bytes


def test_a_version_on_disk_is_activated_without_the_network(robot: Robot, server) -> None:
    robot.begin()
    outcome = robot.install("1.1.0", S.INSTALLED, activate=False)
    assert outcome.final and robot.policy.look()["active"]["version"] == "1.0.0"
    before = sum(server.served.values())
    robot.install("1.1.0", update_id="again")
    assert sum(server.served.values()) == before


def test_the_same_update_id_is_acted_on_once_also_over_a_restart(robot: Robot) -> None:
    robot.begin()
    robot.install("1.1.0")
    assert robot.engine.offer(robot.update("1.1.0")).error_code == "OFFER_REPEATED"
    robot.stop()
    robot.start()
    assert robot.engine.offer(robot.update("1.1.0")).error_code == "OFFER_REPEATED"
    assert robot.trail("u-1.1.0").count("CHECKING") == 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"expires_s": 1.0}, "UPDATE_EXPIRED"),
        ({"manifest_sha256": ""}, "MANIFEST_UNTRUSTED"),
        ({"manifest_sha256": "0" * 64}, "MANIFEST_DIGEST_MISMATCH"),
        ({"version": "1.2.0"}, "VERSION_MISMATCH"),
        ({"name": "fold_towel"}, "NAME_MISMATCH"),
        ({"manifest_url": "http://127.0.0.1:1/x/manifest.json"}, "SOURCE_NOT_ALLOWED"),
        ({"manifest_url": "ftp://127.0.0.1/manifest.json"}, "URL_INVALID"),
    ],
)
def test_an_unfit_offer_is_rejected_with_its_code(robot: Robot, server, fields: dict, code: str) -> None:
    robot.begin()
    outcome = robot.install("1.1.0", S.REJECTED, **fields)
    assert outcome.error_code == code and outcome.message
    status = robot.engine.status()
    assert (status.error_code, status.committed_version) == (code, "1.0.0")
    assert not any("/blobs/" in path for path, _ in server.requests)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"robot_type": "other_arm"}, "ROBOT_TYPE_MISMATCH"),
        ({"channels": ("j1:rad", "j3:rad")}, "CHANNELS_MISMATCH"),
        ({"channels": ("j1:deg", "j2:rad")}, "CHANNELS_MISMATCH"),
        ({"max_bundle_bytes": 10}, "BUNDLE_TOO_LARGE"),
        ({"model_name": "fold_towel"}, "NAME_MISMATCH"),
    ],
)
def test_a_bundle_that_does_not_fit_the_robot_is_rejected_before_it_is_fetched(
    robot: Robot, server, settings: dict, code: str
) -> None:
    robot.settings = settings
    robot.publish("1.1.0")
    robot.start()
    assert robot.install("1.1.0", S.REJECTED, name="").error_code == code
    assert not any("/blobs/" in path for path, _ in server.requests)


def test_a_malformed_offer_is_refused_and_shown(robot: Robot) -> None:
    robot.begin()
    for fields in (
        {"update_id": "a b"}, {"update_id": ""}, {"manifest_sha256": "xyz"}, {"name": "../x"}, {"version": "1.2"},
        {"manifest_url": ""}, {"expires_s": float("nan")},
    ):  # fmt: skip
        reply = robot.engine.offer(dataclasses.replace(robot.update("1.1.0"), **fields))
        assert (reply.success, reply.error_code) == (False, "OFFER_INVALID")
    assert robot.engine.status().error_code == "OFFER_INVALID"
    assert robot.events[-1].to_state == "REJECTED"


def test_an_offer_that_is_refused_stands_under_its_own_id_and_never_under_that_of_another_update(
    robot: Robot, server, caplog: pytest.LogCaptureFixture
) -> None:
    robot.begin()
    robot.install("1.1.0")
    bad = dataclasses.replace(robot.update("1.1.0"), update_id="bad", version="1.2")
    assert not robot.engine.offer(bad).success
    status = robot.engine.status()
    assert (status.update_id, status.state, status.error_code) == ("bad", S.REJECTED, "OFFER_INVALID")
    assert status.committed_version == "1.1.0"
    event = robot.events[-1]
    assert (event.update_id, event.from_state, event.to_state) == ("bad", "IDLE", "REJECTED")
    assert any("offer bad refused" in record.getMessage() for record in caplog.records)

    robot.publish("1.2.0")
    server.behave("/blobs/", Behaviour(stall_after=10))
    robot.offer("1.2.0")
    robot.reach(S.FETCHING)
    assert not robot.engine.offer(dataclasses.replace(bad, update_id="worse")).success
    status = robot.engine.status()
    assert (status.update_id, status.state, status.error_code) == ("u-1.2.0", S.FETCHING, "")
    assert "version" not in status.message and robot.events[-1].update_id == "worse"


def test_a_corrupted_blob_is_rejected_and_nothing_of_it_stays(robot: Robot, server) -> None:
    robot.adopt("1.0.0")
    manifest = robot.publish("1.1.1")
    blob = server.root / "blobs/sha256" / manifest.file("model.safetensors").sha256
    flip_last_byte(blob)
    robot.start()
    assert robot.install("1.1.1", S.REJECTED).error_code == "BLOB_DIGEST_MISMATCH"
    robot.until(lambda: not list((robot.store_dir / "partial").iterdir()))
    assert robot.engine.status().versions == ("1.0.0",)
    assert robot.policy.look()["log"] == []


def read_header_of(data: bytes) -> dict[str, tuple[int, int]]:
    """Return where the tensors of safetensors bytes lie."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: (start + entry["data_offsets"][0], start + entry["data_offsets"][1]) for name, entry in header.items()
    }


def test_weights_with_nan_are_rejected_by_verification(robot: Robot) -> None:
    robot.adopt("1.0.0")
    manifest = robot.publish("1.1.0")
    place = robot.registry / "pick_place/1.1.0"
    blob = robot.registry / "blobs/sha256" / manifest.file("model.safetensors").sha256
    data = blob.read_bytes()[:-4] + struct.pack("<f", float("nan"))
    header = read_header_of(data)
    digests = {name: hashlib.sha256(data[begin:end]).hexdigest() for name, (begin, end) in header.items()}
    files = [
        dataclasses.replace(e, sha256=hashlib.sha256(data).hexdigest()) if e.path == "model.safetensors" else e
        for e in manifest.files
    ]
    bad = dataclasses.replace(manifest, files=tuple(files), tensors={"model.safetensors": digests})
    (place / "manifest.json").write_bytes(bad.canonical())
    (blob.parent / hashlib.sha256(data).hexdigest()).write_bytes(data)
    robot.manifests["1.1.0"] = bad
    robot.start()
    assert robot.install("1.1.0", S.REJECTED).error_code == "VALUES_NOT_FINITE"
    assert robot.current_version() == "1.0.0"


def test_another_bundle_under_an_installed_version_is_refused(robot: Robot, server) -> None:
    robot.adopt("1.0.0")
    robot.publish("1.1.0", seed=1)
    robot.start()
    robot.install("1.1.0", S.INSTALLED, activate=False)
    robot.manifests.clear()
    for path in (robot.folder / "bundle-1.1.0", server.root / "pick_place/1.1.0"):
        path.rename(path.with_name("old-" + path.name))
    robot.publish("1.1.0", seed=2)
    assert robot.install("1.1.0", S.REJECTED, update_id="other").error_code == "VERSION_CONFLICT"


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("GOLDEN_MISMATCH", S.REJECTED),
        ("WORKER_DIED", S.REJECTED),
        ("A_POLICYS_OWN", S.REJECTED),
        ("OUT_OF_MEMORY", S.FAILED),
        ("CONTROL_LOST", S.FAILED),
        ("CANCELLED", S.FAILED),
    ],
)
def test_a_bundle_that_is_not_loaded_is_rejected_only_if_that_is_its_own_fault(
    robot: Robot, code: str, end: UpdateState
) -> None:
    robot.begin(refuse_prepare=code)
    assert robot.install("1.1.0", end).error_code == code


def test_an_expired_update_that_waits_for_permission_is_not_swapped_in(robot: Robot) -> None:
    robot.settings = {"require_permission": True}
    robot.begin()
    update_id = robot.offer("1.1.0", expires_s=time.time() + 3600)
    robot.until(lambda: "update_permitted" in robot.engine.status().message)
    robot.later_s = 7200.0
    robot.ended(update_id, S.REJECTED, "UPDATE_EXPIRED")
    assert robot.trail("u-1.1.0")[-2] == "INSTALLED"


def test_permission_fails_closed_and_opens(robot: Robot) -> None:
    robot.settings = {"require_permission": True}
    robot.begin()
    update_id = robot.offer("1.1.0")
    robot.until(lambda: "update_permitted" in robot.engine.status().message)
    for value in (False, None):
        robot.engine.set_update_permitted(value)
        robot.go_round()
        assert robot.engine.status().state is S.INSTALLED
    robot.engine.set_update_permitted(True)
    robot.ended(update_id, S.COMMITTED)


def test_an_absent_policy_node_is_waited_for_then_the_update_fails(robot: Robot) -> None:
    robot.begin(absent=True)
    update_id = robot.offer("1.1.0")
    robot.until(lambda: "waits for policy_node" in robot.engine.status().message)
    robot.stop()
    robot.settings = {"policy_wait_s": 0.1}
    robot.start()
    robot.ended(update_id, S.FAILED, "POLICY_ABSENT")
    assert "1.1.0" in robot.engine.status().versions


def test_a_full_disk_is_noticed_before_a_byte_is_written(robot: Robot, server) -> None:
    robot.settings = {"min_free_bytes": 1 << 60}
    robot.begin()
    outcome = robot.install("1.1.0", S.FAILED)
    assert outcome.error_code == "DISK_FULL"
    assert not any("/blobs/" in path for path, _ in server.requests)


def test_cancel_in_mid_download_is_quick_and_the_next_offer_resumes(robot: Robot, server) -> None:
    robot.adopt("1.0.0")
    manifest = robot.publish("1.1.0", tensors=shared_weights(3, 100_000))
    weights = manifest.file("model.safetensors")
    server.behave("/blobs/", Behaviour(stall_after=60_000))
    robot.settings = {"read_timeout_s": 3600.0}  # a read that is stuck would take
    robot.start()
    update_id = robot.offer("1.1.0")
    partial = robot.store_dir / "partial" / weights.sha256
    robot.until(lambda: partial.exists() and partial.stat().st_size == 60_000)
    assert robot.engine.cancel(update_id).success
    robot.ended(update_id, S.CANCELLED)
    server.be_good()
    robot.install("1.1.0", update_id="again")
    sent = server.served[f"/blobs/sha256/{weights.sha256}"]
    assert sent == weights.size
    assert any(headers.get("range", "") == "bytes=60000-" for _, headers in server.requests)


def test_a_cancellation_at_the_last_moment_before_the_swap_is_carried_out(
    robot: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    robot.begin()
    gate, replies = robot.engine._ctx.gate, []
    hindrance = gate.hindrance

    def then_cancel(**named: bool) -> str:
        found = hindrance(**named)
        if robot.policy.look()["prepared"]:  # nothing is waited for any more
            replies.append(robot.engine.cancel("u-1.1.0"))
        return found

    monkeypatch.setattr(gate, "hindrance", then_cancel)
    robot.ended(robot.offer("1.1.0"), S.CANCELLED, "CANCELLED")
    assert replies[0].success and robot.policy.look()["active"]["version"] == "1.0.0"


def test_a_cancellation_that_the_swap_overtakes_is_refused_and_the_update_goes_on(
    robot: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    robot.begin(prepare_s=1000.0, swap_s=1000.0)
    update_id = robot.offer("1.1.0")
    robot.reach(S.PREPARING)
    request = robot.engine._ctx.request_cancel

    def overtaken(*what: str) -> None:
        robot.say(prepare_s=0.0)
        robot.reach(S.SWAPPING)
        request(*what)

    monkeypatch.setattr(robot.engine._ctx, "request_cancel", overtaken)
    assert robot.engine.cancel(update_id).error_code == "UNCANCELLABLE"
    robot.say(swap_s=0.0)
    robot.ended(update_id, S.COMMITTED)


def test_cancel_before_its_turn_and_of_nothing(robot: Robot) -> None:
    robot.publish("1.2.0")
    robot.feeding = False
    robot.try_out()
    assert robot.engine.cancel("u-1.1.0").error_code == "UNCANCELLABLE"
    robot.offer("1.2.0")
    robot.until(lambda: "waits until the trial" in robot.engine.status().message)
    assert robot.engine.cancel("u-1.2.0").success
    assert robot.engine.outcome("u-1.2.0").state is S.CANCELLED
    assert robot.engine.cancel("nothing").error_code == "NO_SUCH_UPDATE"


def test_an_update_that_arrives_in_a_trial_waits_for_its_end(robot: Robot) -> None:
    robot.publish("1.2.0")
    robot.feeding = False
    robot.try_out()
    robot.offer("1.2.0")
    robot.feeding = True
    robot.ended("u-1.2.0", S.COMMITTED)
    assert robot.engine.outcome("u-1.1.0").state is S.COMMITTED


def test_the_committed_version_offered_again_ends_without_a_swap_that_nobody_asked_for(robot: Robot) -> None:
    robot.adopt("1.0.0")
    robot.start()
    outcome = robot.install("1.0.0", S.INSTALLED, activate=False)
    assert outcome.error_code == "" and not robot.engine.store.state.activation_due
    assert robot.policy.look()["log"] == [] and robot.current_version() == "1.0.0"
    robot.install("1.0.0", S.COMMITTED, update_id="and-activate")


def test_a_disk_that_cannot_be_written_stops_nothing_but_the_update(robot: Robot) -> None:
    filesystem = UnwritableFilesystem()
    robot.begin(filesystem)
    filesystem.broken = True
    assert robot.engine.offer(robot.update("1.1.0")).error_code == "STORE_IO"
    filesystem.broken = False
    assert robot.install("1.1.0").state is S.COMMITTED


def test_retention_keeps_the_last_n_and_what_is_needed(robot: Robot) -> None:
    robot.settings = {"keep_versions": 2}
    robot.adopt("1.0.0")
    robot.start()
    robot.engine.pin("1.0.0")
    for version in ("1.1.0", "1.2.0", "1.3.0", "1.4.0"):
        robot.publish(version)
        robot.install(version)
    status = robot.engine.status()
    assert status.versions == ("1.4.0", "1.3.0", "1.0.0")
    assert status.pinned == ("1.0.0",)
    needed = {e.sha256 for v in status.versions for e in robot.manifests[v].files}
    assert {path.name for path in (robot.store_dir / "blobs/sha256").iterdir()} == needed


def test_a_plain_folder_behind_a_web_server_is_enough(robot: Robot, server) -> None:
    """`python -m http.server` over a bundle folder: no blobs/, the files lie beside the manifest."""
    robot.adopt("1.0.0")
    manifest = robot.publish("1.1.0", files={"extra-notes.txt": b"hello"})
    shutil.rmtree(server.root / "blobs")
    shutil.copytree(robot.folder / "bundle-1.1.0", server.root / "plain")
    robot.start()
    robot.install("1.1.0", manifest_url=server.url("plain/manifest.json"))
    assert server.served["/plain/model.safetensors"] == manifest.file("model.safetensors").size
    assert server.served["/plain/extra-notes.txt"] == 5


def test_a_folder_on_a_stick_is_enough(robot: Robot) -> None:
    robot.settings = {"allowed_sources": ((robot.folder / "bundle-1.1.0").as_uri(),)}
    robot.begin()
    robot.install("1.1.0", manifest_url=(robot.folder / "bundle-1.1.0/manifest.json").as_uri())
