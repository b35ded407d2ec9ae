# SPDX-License-Identifier: Apache-2.0
"""A manager with a trust root: what is not signed leaves the robot on what it had, and what it has stays usable."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.engine_runs import EngineRuns, Job
from support.ota import Robot
from support.trust import Client, SignedRegistry, expired
from support.waits import wait_for

from vla_checkpoint.manifest import BaseRef
from vla_ota_manager.states import UpdateState
from vla_sim.checkpoint_server import Behaviour

_S = UpdateState


@pytest.fixture
def registry(robot: Robot) -> SignedRegistry:
    """The keys behind the robot's registry, which is signed; 1.0.0 is committed."""
    registry = SignedRegistry(robot.registry, robot.folder / "keys")
    robot.settings["trust_root"] = str(registry.trust_root)
    robot.adopt("1.0.0")
    registry.sign()
    return registry


def nothing_changed(robot: Robot) -> None:
    """The robot is on what it had, and nothing of what it refused is on its disk."""
    assert robot.current_version() == "1.0.0" and robot.policy.look()["active"]["version"] == "1.0.0"
    assert [path.name for path in (robot.store_dir / "models/pick_place").iterdir()] == ["1.0.0"]
    robot.rest()
    assert robot.left_over() == []


def test_what_is_signed_is_installed_also_by_an_offer_without_a_digest(robot: Robot, registry: SignedRegistry) -> None:
    robot.publish("1.1.0")
    registry.sign()
    robot.start()
    robot.install("1.1.0", manifest_sha256="")
    assert robot.engine is not None and robot.engine.status().trust == "tuf"


def test_what_is_not_signed_is_refused_before_a_file_of_it_is_asked_for(robot: Robot, registry: SignedRegistry) -> None:
    manifest = robot.publish("1.1.0")
    robot.start()
    robot.ended(robot.offer("1.1.0"), _S.REJECTED, "TRUST_UNKNOWN_TARGET")
    assert not [path for path, _ in robot.server.requests if "/blobs/" in path]
    nothing_changed(robot)
    registry.sign()
    assert manifest.version == robot.install("1.1.0", update_id="u-again").version


def test_an_adapter_that_the_robot_trained_itself_needs_no_signature_and_nothing_else_passes_as_one(
    robot: Robot, registry: SignedRegistry
) -> None:
    own = robot.folder / "own"
    robot.settings["adapter_dir"] = str(own)
    base = robot.manifests["1.0.0"]
    robot.publish("1.0.1", base=BaseRef(base.name, base.version, base.digest))
    robot.publish("1.1.0")
    for version in ("1.0.1", "1.1.0"):
        shutil.copytree(robot.folder / f"bundle-{version}", own / version)
    robot.start()
    not_an_adapter = (own / "1.1.0" / "manifest.json").as_uri()
    robot.ended(robot.offer("1.1.0", manifest_url=not_an_adapter), _S.REJECTED)  # its signatures are asked for
    elsewhere = (robot.folder / "bundle-1.0.1" / "manifest.json").as_uri()
    for number, url in enumerate(
        (robot.update("1.0.1").manifest_url, f"{own.as_uri()}/../bundle-1.0.1/manifest.json", elsewhere)
    ):
        outcome = robot.ended(robot.offer("1.0.1", manifest_url=url, update_id=f"u-{number}"))
        assert outcome.state is not _S.COMMITTED, url
    nothing_changed(robot)
    made_here = (own / "1.0.1" / "manifest.json").as_uri()
    robot.install("1.0.1", _S.INSTALLED, manifest_url=made_here, activate=False, update_id="u-own")
    # what lies on the disk by now has no signature either: no other place makes it trusted
    robot.ended(robot.offer("1.0.1", update_id="u-later"), _S.REJECTED, "TRUST_UNKNOWN_TARGET")


def test_other_content_under_a_signed_version_is_refused(robot: Robot, registry: SignedRegistry) -> None:
    robot.publish("1.1.0")
    registry.sign()
    shutil.rmtree(robot.registry / "pick_place/1.1.0")
    shutil.rmtree(robot.folder / "bundle-1.1.0")
    robot.publish("1.1.0", seed=99)  # whoever offers it promises the digest of this one
    robot.start()
    robot.ended(robot.offer("1.1.0"), _S.REJECTED, "TRUST_UNKNOWN_TARGET")
    nothing_changed(robot)


def test_a_signed_version_that_lies_where_another_one_does_is_refused(robot: Robot, registry: SignedRegistry) -> None:
    robot.publish("1.1.0")
    newer = robot.publish("1.2.0")
    registry.sign()
    robot.start()
    url = robot.update("1.1.0").manifest_url
    robot.ended(robot.offer("1.2.0", manifest_url=url), _S.REJECTED, "MANIFEST_DIGEST_MISMATCH")
    nothing_changed(robot)
    assert robot.install("1.2.0", update_id="u-right").version == newer.version


def test_expired_metadata_are_no_verdict_on_the_version(robot: Robot, registry: SignedRegistry) -> None:
    robot.publish("1.1.0")
    registry.sign()
    good = registry.files()
    registry.tamper("timestamp.json", expired)
    robot.start()
    outcome = robot.ended(robot.offer("1.1.0"), _S.FAILED, "TRUST_EXPIRED")
    assert "clock" in outcome.message
    nothing_changed(robot)
    registry.put_back(good)
    robot.install("1.1.0", update_id="u-again")


def test_a_clock_that_is_behind_installs_nothing_and_says_so(robot: Robot, registry: SignedRegistry) -> None:
    robot.publish("1.1.0")
    registry.sign()
    robot.later_s = -400 * 86400.0
    robot.start()
    robot.ended(robot.offer("1.1.0"), _S.FAILED, "TRUST_CLOCK")
    nothing_changed(robot)
    robot.later_s = 0.0
    robot.install("1.1.0", update_id="u-again")


def test_what_was_taken_back_cannot_be_activated_anew_but_rolled_back_to(
    robot: Robot, registry: SignedRegistry
) -> None:
    robot.publish("1.1.0")
    robot.publish("1.2.0")
    registry.sign()
    engine = robot.start()
    robot.install("1.1.0")
    robot.install("1.2.0")
    shutil.rmtree(robot.registry / "pick_place/1.1.0")
    registry.sign()
    robot.server.be_good()
    robot.ended(robot.offer("1.1.0", update_id="u-again"), _S.REJECTED, "TRUST_UNKNOWN_TARGET")
    assert robot.current_version() == "1.2.0"
    reply = engine.rollback("1.1.0", reason="1.2.0 drops the cup")
    assert reply.success, reply
    assert robot.current_version() == "1.1.0"


def test_what_is_taken_back_while_its_update_waits_ends_before_it_acts(robot: Robot, registry: SignedRegistry) -> None:
    update_id = waiting_to_be_swapped_in(robot, registry)
    shutil.rmtree(robot.registry / "pick_place/1.1.0")
    registry.sign()
    assert robot.engine is not None
    robot.engine.set_update_permitted(True)
    robot.ended(update_id, _S.REJECTED, "TRUST_UNKNOWN_TARGET")
    assert "SWAPPING" not in robot.trail(update_id) and robot.current_version() == "1.0.0"
    assert robot.policy.look()["active"]["version"] == "1.0.0"


def test_a_rollback_to_what_was_taken_back_is_carried_out_and_says_so(robot: Robot, registry: SignedRegistry) -> None:
    robot.publish("1.1.0")
    robot.publish("1.2.0")
    registry.sign()
    engine = robot.start()
    robot.install("1.1.0")
    shutil.rmtree(robot.registry / "pick_place/1.1.0")
    registry.sign()
    robot.install("1.2.0")
    robot.server.behave("/", Behaviour(status=503))
    reply = engine.rollback()
    assert reply.success and reply.to_version == "1.1.0" and "not signed" in reply.message
    assert "not signed" in engine.status().message
    assert "not signed" not in engine.rollback("1.0.0").message


def test_a_verdict_goes_back_to_what_was_taken_back_and_says_so(robot: Robot, registry: SignedRegistry) -> None:
    robot.publish("1.1.0")
    registry.sign()
    robot.start()
    robot.install("1.1.0")
    shutil.rmtree(robot.registry / "pick_place/1.1.0")
    robot.publish("1.2.0")
    registry.sign()
    robot.feeding = False
    update_id = robot.offer("1.2.0")
    robot.reach(_S.TRIAL)
    robot.score(1.0, "hard_limit")
    outcome = robot.ended(update_id, _S.ROLLED_BACK, "HARD_LIMIT")
    assert "1.1.0 is not signed" in outcome.message and robot.current_version() == "1.1.0"


@pytest.mark.parametrize("behaviour", [Behaviour(status=503), Behaviour(silent_s=3600.0)], ids=["refuses", "silent"])
def test_a_registry_that_cannot_be_asked_again_holds_no_update_up(
    robot: Robot, registry: SignedRegistry, behaviour: Behaviour
) -> None:
    robot.settings |= {"retries": 1000, "backoff_s": 3600.0, "connect_timeout_s": 0.2, "read_timeout_s": 0.5}
    update_id = waiting_to_be_swapped_in(robot, registry)
    robot.server.behave("/trust/", behaviour)
    assert robot.engine is not None
    robot.engine.set_update_permitted(True)
    robot.ended(update_id, _S.COMMITTED)


def waiting_to_be_swapped_in(robot: Robot, registry: SignedRegistry) -> str:
    """Prepare 1.1.0, and withdraw the permission while that is done; return the update's id."""
    robot.publish("1.1.0")
    registry.sign()
    robot.settings["require_permission"] = True
    engine = robot.start()
    engine.set_update_permitted(True)
    robot.say(prepare_s=30.0)
    update_id = robot.offer("1.1.0")
    robot.reach(_S.PREPARING)
    engine.set_update_permitted(False)
    robot.say(prepare_s=0.0)
    robot.until(lambda: "waits for update_permitted" in engine.status().message)
    return update_id


def test_an_older_version_acts_only_where_somebody_says_that_it_is_meant(
    robot: Robot, registry: SignedRegistry
) -> None:
    for version in ("1.1.0", "1.1.0-rc.1", "0.9.0"):
        robot.publish(version)
    registry.sign()
    engine = robot.start()
    robot.install("1.1.0")
    for version in ("1.1.0-rc.1", "0.9.0"):
        outcome = robot.ended(robot.offer(version), _S.REJECTED, "VERSION_OLDER")
        assert "1.1.0" in outcome.message
    assert robot.current_version() == "1.1.0"
    robot.install("1.1.0-rc.1", update_id="u-meant", allow_older=True)
    robot.install("0.9.0", _S.INSTALLED, update_id="u-kept", activate=False)
    assert robot.current_version() == "1.1.0-rc.1"
    assert engine.rollback("0.9.0").success and robot.current_version() == "0.9.0"


def test_an_update_that_an_earlier_release_has_queued_is_carried_out(robot: Robot, registry: SignedRegistry) -> None:
    robot.publish("1.1.0")
    robot.server.behave("timestamp.json", Behaviour(silent_s=3600.0))
    engine = robot.start()
    robot.offer("1.1.0")
    robot.offer("1.1.0", update_id="u-queued", activate=False)
    robot.until(lambda: robot.saved().update is not None and robot.saved().queue)
    assert engine is robot.engine
    robot.stop()
    path = robot.store_dir / "state.json"
    document = json.loads(path.read_text())
    for update in (document["update"]["update"], *document["queue"]):
        del update["allow_older"]
    path.write_text(json.dumps(document))
    assert robot.saved().state is _S.CHECKING and [update.update_id for update in robot.saved().queue] == ["u-queued"]


def test_a_robot_whose_trust_root_is_not_there_goes_on_and_can_go_back(robot: Robot, registry: SignedRegistry) -> None:
    """Without a network, and without signatures, what was committed acts, and the way back is open."""
    robot.publish("1.1.0")
    registry.sign()
    robot.start()
    robot.install("1.1.0")
    robot.stop()
    robot.server.behave("/", Behaviour(status=503))
    engine = robot.start()
    assert robot.current_version() == "1.1.0"
    assert engine.rollback().success and robot.current_version() == "1.0.0"


def test_the_files_beside_a_plain_url_are_checked_as_well(robot: Robot, registry: SignedRegistry) -> None:
    """A registry on a stick: metadata, manifest and blobs by file URL."""
    robot.publish("1.1.0")
    registry.sign()
    robot.settings["allowed_sources"] = (robot.registry.as_uri(),)
    robot.start()
    robot.install("1.1.0", manifest_url=(robot.registry / "pick_place/1.1.0/manifest.json").as_uri())
    robot.publish("1.2.0")
    url = (robot.registry / "pick_place/1.2.0/manifest.json").as_uri()
    robot.ended(robot.offer("1.2.0", manifest_url=url), _S.REJECTED, "TRUST_UNKNOWN_TARGET")


def test_metadata_outside_the_allowed_sources_are_not_fetched(robot: Robot, registry: SignedRegistry) -> None:
    robot.publish("1.1.0")
    registry.sign()
    robot.settings["allowed_sources"] = (robot.server.url("pick_place"),)
    robot.start()
    robot.ended(robot.offer("1.1.0"), _S.REJECTED, "SOURCE_NOT_ALLOWED")
    assert not [path for path, _ in robot.server.requests if path.startswith("/trust")]
    nothing_changed(robot)


@pytest.fixture(scope="module")
def runs() -> Iterator[EngineRuns]:
    with EngineRuns() as runs:
        yield runs


def test_killed_at_any_point_of_a_refresh_a_robot_forgets_nothing_and_goes_on(
    robot: Robot, registry: SignedRegistry, runs: EngineRuns
) -> None:
    robot.publish("1.1.0")
    robot.boot_policy()
    registry.sign()
    before = registry.files()
    first = Client(robot.store_dir, robot.server.base, registry.trust_root)
    assert first.find("pick_place/1.1.0/manifest.json") is not None
    robot.publish("1.2.0")
    registry.sign()
    knows, template = first.version("timestamp"), robot.folder / "template"
    shutil.copytree(robot.store_dir, template, symlinks=True, ignore=shutil.ignore_patterns(".lock"))

    def job(crash_at: str, log: str = "") -> tuple[Job, Path]:
        shutil.rmtree(robot.store_dir)
        shutil.copytree(template, robot.store_dir, symlinks=True)
        robot.boot_policy()
        update = robot.update("1.2.0", activate=False).to_json()
        config = robot.config_arguments()
        return (
            Job(config, str(robot.policy_file), update, wait_for=update["update_id"], crash_at=crash_at, crash_log=log),
            robot.store_dir / "trust.json",
        )

    log = robot.folder / "points"
    assert runs.run(job("", str(log))[0]) == 0
    points = sorted({name for name in log.read_text().split() if name.startswith("trust.")})
    assert {"trust.before_write", "trust.after_write", "trust.before_rename", "trust.after_rename"} == set(points)
    for point in points:
        work, kept = job(f"{point}:1")
        assert runs.run(work) == -signal.SIGKILL, point
        assert not (robot.store_dir / "models/pick_place/1.2.0").exists(), point
        assert json.loads(kept.read_bytes())["timestamp.json"], point
        client = Client(robot.store_dir, robot.server.base, registry.trust_root)
        assert client.version("timestamp") == (knows + 1 if point == "trust.after_rename" else knows), point
        assert runs.run(replace(work, crash_at="")) == 0, point
        assert (robot.store_dir / "models/pick_place/1.2.0/manifest.json").exists(), point
        assert robot.current_version() == "1.0.0" and client.version("timestamp") == knows + 1, point
        now = registry.files()
        registry.put_back(before)
        with pytest.raises(Exception, match="TRUST_ROLLBACK"):
            client.find()
        registry.put_back(now)


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_stopped_while_a_server_keeps_silent_about_metadata_it_goes_on_at_the_next_start(
    robot: Robot, registry: SignedRegistry, name: str
) -> None:
    robot.publish("1.1.0")
    registry.sign()
    robot.server.behave(name, Behaviour(silent_s=3600.0), times=1)
    robot.start()
    update_id = robot.offer("1.1.0")
    wait_for(lambda: any(name in path for path, _ in robot.server.requests), f"a request for {name}")
    robot.stop()
    assert robot.current_version() == "1.0.0"
    robot.start()
    robot.ended(update_id, _S.COMMITTED)


def test_a_cancellation_ends_a_refresh(robot: Robot, registry: SignedRegistry) -> None:
    robot.publish("1.1.0")
    robot.server.behave("timestamp.json", Behaviour(silent_s=3600.0))
    engine = robot.start()
    update_id = robot.offer("1.1.0")
    wait_for(lambda: any("timestamp" in path for path, _ in robot.server.requests), "a request")
    assert engine.cancel(update_id).success
    robot.ended(update_id, _S.CANCELLED, "CANCELLED")
    nothing_changed(robot)
