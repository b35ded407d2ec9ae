# SPDX-License-Identifier: Apache-2.0
"""An urgent update takes a trial's place when it lies complete and verified on the disk, and costs the robot nothing before."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bundles import flip_last_byte
from support.filesystems import UnwritableFilesystem
from support.ota import Robot, shared_weights

from vla_ota_manager.states import UpdateState
from vla_sim.checkpoint_server import Behaviour

S = UpdateState
SLOW = Behaviour(rate_bytes_s=30_000)  # thirteen seconds for the whole


@pytest.fixture
def on_trial(robot: Robot) -> Robot:
    """1.0.0 is committed, 1.1.0 is on trial and proves nothing yet; 1.2.0 is in the registry, and not small."""
    robot.settings = {"robot_type": "sim_arm", "retries": 2}
    robot.publish("1.2.0", tensors=shared_weights(3, 100_000))
    robot.feeding = False
    robot.try_out()
    return robot


def weights(robot: Robot, version: str = "1.2.0") -> str:
    """Path on the server of a version's weights."""
    entry = robot.manifests[version].file("model.safetensors")
    assert entry is not None
    return f"/blobs/sha256/{entry.sha256}"


def on_disk(robot: Robot) -> int:
    """Return how much of 1.2.0's weights has been written; what the server has sent may still be on its way."""
    partial = robot.store_dir / "partial" / Path(weights(robot)).name
    return partial.stat().st_size if partial.exists() else 0


def being_fetched(robot: Robot) -> None:
    """Offer 1.2.0 over a slow line and wait until some of it has come."""
    robot.server.behave("/blobs/", SLOW)
    robot.offer("1.2.0", urgent=True)
    robot.until(lambda: on_disk(robot) > 20_000)


def check_trial_goes_on(robot: Robot) -> None:
    """1.1.0 still acts on its lease, was never taken away, and can still prove itself."""
    document = robot.policy.look()
    assert document["active"]["version"] == "1.1.0" and document["lease"] is not None
    assert robot.engine.status().state is S.TRIAL and robot.engine.outcome("u-1.1.0").final is False
    robot.feeding = True
    robot.ended("u-1.1.0", S.COMMITTED)
    assert [line for line in document["log"] if line.startswith("swap")] == ["swap 1.1.0 UPDATE CHUNK"]


def corrupt(robot: Robot) -> dict:
    flip_last_byte(robot.registry / weights(robot).lstrip("/"))
    return {}


def not_published(robot: Robot) -> dict:
    (robot.registry / weights(robot).lstrip("/")).unlink()
    return {}


def of_another_robot(robot: Robot) -> dict:
    robot.publish("1.3.0", robot_type="other_arm")
    other = robot.update("1.3.0")
    return {"version": "1.3.0", "manifest_url": other.manifest_url, "manifest_sha256": other.manifest_sha256}


def with_a_manifest_of_megabytes(robot: Robot) -> dict:
    """Legal but for its size: to parse it would silence the engine for longer than a lease may last."""
    path = robot.registry / "pick_place" / "1.2.0" / "manifest.json"
    keys = ",".join(f'"{i:06}":0' for i in range(900_000))
    data = path.read_bytes().replace(b'"lineage":{}', f'"lineage":{{{keys}}}'.encode())
    path.write_bytes(data)
    return {"manifest_sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize(
    ("breaks", "end", "code"),
    [
        (corrupt, S.REJECTED, "BLOB_DIGEST_MISMATCH"),
        (not_published, S.FAILED, "NOT_FOUND"),
        (of_another_robot, S.REJECTED, "ROBOT_TYPE_MISMATCH"),
        (with_a_manifest_of_megabytes, S.REJECTED, "MANIFEST_TOO_LARGE"),
    ],
    ids=["corrupt", "not published", "of another robot", "a large manifest"],
)
def test_a_broken_urgent_update_does_not_cost_the_robot_its_trial(
    on_trial: Robot, breaks: Callable[[Robot], dict], end: UpdateState, code: str
) -> None:
    fields = breaks(on_trial)
    outcome = on_trial.ended(on_trial.offer("1.2.0", urgent=True, **fields), end, code)
    assert outcome.message
    on_trial.until(lambda: on_trial.trail("u-1.2.0"))
    event = next(event for event in on_trial.events if event.update_id == "u-1.2.0")
    assert (event.to_state, event.error_code) == (end.name, code)
    on_trial.until(lambda: on_trial.engine.status().error_code == code)
    assert any(code in line for line in on_trial.engine.list_models().history)
    if end is S.REJECTED:
        on_trial.until(lambda: not list((on_trial.store_dir / "partial").iterdir()))
    assert on_trial.engine.status().versions == ("1.1.0", "1.0.0")
    check_trial_goes_on(on_trial)


def test_the_trial_ends_when_the_urgent_update_is_complete_on_disk_and_nothing_is_blocked(on_trial: Robot) -> None:
    on_trial.offer("1.2.0", urgent=True)
    on_trial.ended("u-1.1.0", S.ROLLED_BACK, "SUPERSEDED")
    first = next(status for status in on_trial.statuses if status.state is S.ROLLING_BACK)
    assert "1.2.0" in first.versions
    sent = on_trial.server.served[weights(on_trial)]
    on_trial.feeding = True
    outcome = on_trial.ended("u-1.2.0")
    assert outcome.state is S.COMMITTED
    assert on_trial.engine.status().blocked == ()
    assert (
        on_trial.server.served[weights(on_trial)] == sent == on_trial.manifests["1.2.0"].file("model.safetensors").size
    )
    of_it = [entry.sha256 for entry in on_trial.manifests["1.2.0"].files]
    served = sum(count for path, count in on_trial.server.served.items() if path[-64:] in of_it or "1.2.0" in path)
    assert outcome.bytes_downloaded == served  # also what came before it had its turn


def test_while_it_is_fetched_the_lease_is_renewed_and_evidence_counts(robot: Robot) -> None:
    robot.settings = {"min_trial_chunks": 10_000}
    robot.publish("1.2.0", tensors=shared_weights(3, 100_000))
    robot.try_out()
    being_fetched(robot)
    lease, progress = robot.policy.look()["lease"]["until"], robot.engine.status().trial_progress
    robot.until(lambda: robot.policy.look()["lease"]["until"] > lease + 1.0)
    robot.until(lambda: robot.engine.status().trial_progress > progress)
    assert robot.engine.status().state is S.TRIAL
    assert robot.server.served[weights(robot)] < robot.manifests["1.2.0"].file("model.safetensors").size


def test_a_verdict_does_not_wait_for_the_download(on_trial: Robot) -> None:
    on_trial.server.behave(weights(on_trial), Behaviour(stall_after=30_000), times=1)
    on_trial.offer("1.2.0", urgent=True)
    on_trial.until(lambda: on_disk(on_trial) == 30_000)
    on_trial.score(1.0, "hard_limit")
    on_trial.ended("u-1.1.0", S.ROLLED_BACK, "HARD_LIMIT")
    assert on_trial.engine.status().blocked == ("1.1.0",)
    assert on_trial.engine.outcome("u-1.2.0").final is False
    on_trial.feeding = True
    on_trial.ended("u-1.2.0", S.COMMITTED)
    assert on_trial.server.served[weights(on_trial)] == on_trial.manifests["1.2.0"].file("model.safetensors").size


def test_a_trial_that_proves_itself_meanwhile_is_committed_and_the_update_goes_on_where_it_was(on_trial: Robot) -> None:
    being_fetched(on_trial)
    on_trial.feeding = True
    on_trial.ended("u-1.1.0", S.COMMITTED)
    assert on_trial.server.served[weights(on_trial)] < on_trial.manifests["1.2.0"].file("model.safetensors").size
    on_trial.server.be_good()
    on_trial.ended("u-1.2.0", S.COMMITTED)
    asked = [headers.get("range", "") for path, headers in on_trial.server.requests if path == weights(on_trial)]
    assert len(asked) >= 2 and "" not in asked[1:]


def test_a_person_is_not_kept_waiting_by_the_download(on_trial: Robot) -> None:
    being_fetched(on_trial)
    assert on_trial.engine.cancel("u-1.2.0").success
    on_trial.ended("u-1.2.0", S.CANCELLED, "CANCELLED")
    on_trial.offer("1.2.0", update_id="again", urgent=True)
    on_trial.until(lambda: "again" in on_trial.engine.status().message)
    reply = on_trial.engine.rollback(timeout_s=60.0)
    assert (reply.success, reply.to_version) == (True, "1.0.0")
    assert on_trial.ended("u-1.1.0").error_code == "OPERATOR_ROLLBACK"
    on_trial.server.be_good()
    on_trial.feeding = True
    on_trial.ended("again", S.COMMITTED)


@pytest.fixture
def not_permitted(robot: Robot) -> Robot:
    """As ``on_trial``, and since then nobody permits an update any more."""
    robot.settings = {"require_permission": True}
    robot.publish("1.2.0")
    robot.feeding = False
    robot.try_out()
    robot.engine.set_update_permitted(False)
    return robot


def test_without_permission_it_lies_ready_and_the_trial_goes_on(not_permitted: Robot) -> None:
    robot = not_permitted
    robot.offer("1.2.0", urgent=True)
    robot.until(lambda: "on disk and waits for update_permitted" in robot.engine.status().message)
    assert robot.engine.status().state is S.TRIAL and robot.policy.look()["active"]["version"] == "1.1.0"
    robot.engine.set_update_permitted(True)
    assert robot.ended("u-1.1.0").error_code == "SUPERSEDED"
    robot.feeding = True
    robot.ended("u-1.2.0", S.COMMITTED)


def test_an_offer_that_expires_while_it_lies_ready_is_rejected(not_permitted: Robot) -> None:
    not_permitted.offer("1.2.0", urgent=True, expires_s=time.time() + 3600)
    not_permitted.until(lambda: "on disk and waits" in not_permitted.engine.status().message)
    not_permitted.later_s = 7200.0
    assert not_permitted.ended("u-1.2.0").error_code == "UPDATE_EXPIRED"
    check_trial_goes_on(not_permitted)


def test_the_version_on_trial_offered_again_as_urgent_ends_no_trial(on_trial: Robot) -> None:
    on_trial.offer("1.1.0", update_id="again", version="", urgent=True)
    on_trial.until(lambda: "which is on trial" in on_trial.engine.status().message)
    check_trial_goes_on(on_trial)
    on_trial.ended("again", S.COMMITTED)


def test_an_urgent_update_that_is_not_to_act_waits(on_trial: Robot) -> None:
    on_trial.offer("1.2.0", urgent=True, activate=False)
    on_trial.until(lambda: "waits until the trial" in on_trial.engine.status().message)
    check_trial_goes_on(on_trial)
    on_trial.ended("u-1.2.0", S.INSTALLED)


def test_after_a_restart_it_goes_on_where_it_was_and_so_does_the_trial(on_trial: Robot) -> None:
    being_fetched(on_trial)
    on_trial.stop()
    on_trial.server.be_good()
    on_trial.start()
    assert on_trial.ended("u-1.1.0").error_code == "SUPERSEDED"
    on_trial.feeding = True
    outcome = on_trial.ended("u-1.2.0")
    assert outcome.state is S.COMMITTED
    size = on_trial.manifests["1.2.0"].file("model.safetensors").size
    assert size <= on_trial.server.served[weights(on_trial)] < size + size // 2  # but for what was in flight
    assert outcome.bytes_downloaded >= size


def test_a_version_on_disk_that_waits_as_urgent_is_kept(robot: Robot) -> None:
    """Retention at the end of the trial must not remove what takes its place."""
    robot.settings = {"keep_versions": 1}
    robot.adopt("1.0.0")
    robot.publish("1.1.0")
    robot.publish("1.2.0")
    robot.feeding = False
    robot.start()
    robot.install("1.2.0", S.INSTALLED, activate=False, update_id="ahead")
    assert robot.engine.pin("1.2.0").success
    robot.offer("1.1.0")
    robot.reach(S.TRIAL)
    assert robot.engine.pin("1.2.0", unpin=True).success
    before = sum(robot.server.served.values())
    robot.offer("1.2.0", urgent=True)
    assert robot.ended("u-1.1.0").error_code == "SUPERSEDED"
    robot.feeding = True
    robot.ended("u-1.2.0", S.COMMITTED)
    assert sum(robot.server.served.values()) == before


def test_a_verdict_that_cannot_be_written_down_while_it_is_fetched_is_carried_out_all_the_same(robot: Robot) -> None:
    filesystem = UnwritableFilesystem()
    robot.settings = {"min_trial_chunks": 1000}
    robot.publish("1.2.0", tensors=shared_weights(3, 100_000))
    robot.try_out(filesystem=filesystem)
    being_fetched(robot)
    filesystem.broken = True
    robot.score(1.0, "hard_limit")
    robot.until(lambda: robot.policy.look()["active"]["version"] == "1.0.0")
    filesystem.broken = False
    robot.ended("u-1.1.0", S.ROLLED_BACK, "HARD_LIMIT")
    assert robot.engine.status().blocked == ("1.1.0",)


def test_urgent_updates_come_first_in_the_order_in_which_they_came(robot: Robot) -> None:
    robot.settings = {"policy_wait_s": 600.0}
    robot.adopt("1.0.0")
    for minor in range(1, 5):
        robot.publish(f"1.{minor}.0")
    robot.boot_policy()
    robot.say(absent=True)
    robot.start()
    robot.offer("1.1.0")
    robot.reach(S.INSTALLED)
    robot.offer("1.2.0")
    robot.offer("1.3.0", urgent=True)
    robot.offer("1.4.0", urgent=True)
    assert [update.version for update in robot.engine.store.state.queue] == ["1.3.0", "1.4.0", "1.2.0"]


def test_of_two_urgent_updates_the_second_has_its_turn_when_the_first_is_broken(on_trial: Robot) -> None:
    corrupt(on_trial)
    on_trial.publish("1.3.0")
    on_trial.offer("1.2.0", urgent=True)
    on_trial.offer("1.3.0", urgent=True)
    assert on_trial.ended("u-1.2.0").error_code == "BLOB_DIGEST_MISMATCH"
    assert on_trial.ended("u-1.1.0").error_code == "SUPERSEDED"
    on_trial.feeding = True
    on_trial.ended("u-1.3.0", S.COMMITTED)
