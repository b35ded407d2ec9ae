# SPDX-License-Identifier: Apache-2.0
"""What a server with keys publishes is signed, and a robot with the root installs that and nothing else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bundles import make_bundle
from support.fleet import TOP, FleetServer, enrolled
from support.ota import Robot
from support.refusals import refused
from support.waits import wait_for

from vla_checkpoint import Manifest
from vla_checkpoint.repository import keys
from vla_checkpoint.repository.metadata import utc_now
from vla_fleet import protocol
from vla_fleet.client import Client
from vla_fleet.clock import SystemClock
from vla_fleet.server.passes import Passes
from vla_ota_manager.records import Update
from vla_ota_manager.states import UpdateState
from vla_sim.checkpoint_server import CheckpointServer
from vla_sim.fleet.server import SERVE

NAME = "pick_place"


@pytest.fixture(scope="module")
def key_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    keys.init(folder, utc_now())
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, key_folder: Path) -> Iterator[FleetServer]:
    options = ("--signing-keys", str(key_folder))
    with FleetServer(tmp_path_factory.mktemp("fleet"), options=options) as server:
        yield server


@pytest.fixture
def client(server: FleetServer) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def robot(tmp_path: Path, key_folder: Path) -> Iterator[Robot]:
    """A robot that trusts the keys and has committed 1.0.0 at the factory."""
    (tmp_path / "registry").mkdir()
    with CheckpointServer(tmp_path / "registry") as unused:
        robot = Robot(tmp_path, unused, {"trust_root": str(key_folder / "1.root.json")})
        robot.adopt("1.0.0")
        yield robot
        robot.stop()


def offered(server: FleetServer, manifest: Manifest, robot: str = "arm") -> Update:
    """Return an update as an order brings it to a robot: with a pass in its URL."""
    passes = Passes((server.data / "files.key").read_bytes(), f"{server.url}/files", SystemClock())
    url = f"{server.url}/files/{manifest.name}/{manifest.version}/manifest.json"
    order = protocol.ModelUpdate(
        name=manifest.name, version=manifest.version, manifest_url=url, manifest_sha256=manifest.digest
    )
    through = passes.through(order, robot)
    assert isinstance(through, protocol.ModelUpdate)
    return Update(f"u-{manifest.version}", through.manifest_url, manifest.digest, NAME, manifest.version)


def try_to_install(robot: Robot, update: Update) -> tuple[UpdateState, str]:
    """Offer an update; return how it ended, and its code."""
    assert robot.engine is not None
    assert robot.engine.offer(update).success
    outcome = robot.ended(update.update_id)
    return outcome.state, outcome.error_code


def test_a_robot_with_the_root_installs_what_the_server_signed(
    server: FleetServer, client: Client, robot: Robot, tmp_path: Path
) -> None:
    enrolled(client, "arm")
    manifest = make_bundle(tmp_path / "new", version="1.1.0", name=NAME, seed=5)
    client.publish(tmp_path / "new")
    robot.settings["allowed_sources"] = (server.url,)
    engine = robot.start()
    assert try_to_install(robot, offered(server, manifest)) == (UpdateState.COMMITTED, "")
    assert robot.current_version() == "1.1.0" and engine.status().trust == "tuf"


def test_what_was_retired_before_or_never_signed_or_signed_by_others_leaves_the_robot_on_what_it_had(
    server: FleetServer, client: Client, robot: Robot, tmp_path: Path
) -> None:
    enrolled(client, "arm_2")
    retired = make_bundle(tmp_path / "retired", version="2.0.0", name=NAME, seed=6)
    client.publish(tmp_path / "retired")
    client.retire(NAME, "2.0.0")
    other = make_bundle(tmp_path / "other", version="3.0.0", name=NAME, seed=7)
    theirs = tmp_path / "theirs"
    keys.init(theirs, utc_now())
    with (
        FleetServer(tmp_path / "unsigned", options=("--open-files",)) as unsigned,
        FleetServer(tmp_path / "evil", options=("--open-files", "--signing-keys", str(theirs))) as evil,
    ):
        robot.settings["allowed_sources"] = (server.url, unsigned.url, evil.url)
        robot.start()
        assert try_to_install(robot, offered(server, retired, "arm_2")) == (
            UpdateState.REJECTED,
            "TRUST_UNKNOWN_TARGET",
        )
        for number, (place, code) in enumerate(((unsigned, "TRUST_METADATA"), (evil, "TRUST_SIGNATURE"))):
            with place.client() as publisher:
                publisher.publish(tmp_path / "other")
            url = f"{place.url}/files/{NAME}/3.0.0/manifest.json"
            assert try_to_install(robot, Update(f"u-{number}", url, other.digest, NAME)) == (UpdateState.REJECTED, code)
    assert robot.current_version() == "1.0.0" and robot.left_over() == []
    assert [path.name for path in (robot.store_dir / "models" / NAME).iterdir()] == ["1.0.0"]


def test_a_server_that_gets_keys_signs_what_it_has_and_a_rotated_key_needs_no_restart(tmp_path: Path) -> None:
    folder, data = tmp_path / "keys", tmp_path / "fleet"
    with FleetServer(data) as plain, plain.client() as client:
        make_bundle(tmp_path / "a", name="early", version="1.0.0")
        client.publish(tmp_path / "a")
        assert client.trust() == {}
    keys.init(folder, utc_now())
    with FleetServer(data, options=("--signing-keys", str(folder))) as signing, signing.client() as client:
        files = wait_for(client.trust, "the first signature")
        assert list(json.loads(files["1.targets.json"])["signed"]["targets"]) == ["early/1.0.0/manifest.json"]
        root = keys.rotate(folder, utc_now(), "targets")
        make_bundle(tmp_path / "b", name="early", version="1.1.0", seed=2)
        client.publish(tmp_path / "b")
        targets = json.loads(client.trust()["2.targets.json"])
        assert [s["keyid"] for s in targets["signatures"]] == root.signed.roles["targets"].keyids
        assert len(targets["signed"]["targets"]) == 2 and "2.root.json" in client.trust()


def test_without_the_key_of_targets_the_server_signs_only_what_publishers_signed(tmp_path: Path) -> None:
    folder, online = tmp_path / "keys", tmp_path / "online"
    keys.init(folder, utc_now())
    online.mkdir()
    for name in ("online.pem", "1.root.json"):
        (online / name).write_bytes((folder / name).read_bytes())
    make_bundle(tmp_path / "a", name="pick", version="1.0.0")
    make_bundle(tmp_path / "b", name="pick", version="1.1.0", seed=2)
    make_bundle(tmp_path / "c", name="pick", version="1.2.0", seed=3)

    def signed(client: Client) -> list[str]:
        newest = max((name for name in client.trust() if "targets" in name), default="")
        return (
            [path.split("/")[1] for path in json.loads(client.trust()[newest])["signed"]["targets"]] if newest else []
        )

    with FleetServer(tmp_path / "fleet", options=("--signing-keys", str(online))) as server, server.client() as client:
        client.publish(tmp_path / "a")
        assert signed(client) == []
        client.publish(tmp_path / "a", sign_with=folder)
        client.publish(tmp_path / "b")
        assert signed(client) == ["1.0.0"]
        client.publish(tmp_path / "c", sign_with=folder)
        assert signed(client) == ["1.0.0", "1.2.0"] and "timestamp.json" in client.trust()
        client.retire("pick", "1.0.0")
        assert signed(client) == ["1.0.0", "1.2.0"], "who has no key takes nothing back"
        client.retire("pick", "1.0.0", sign_with=folder)
        assert signed(client) == ["1.2.0"]
        forged = keys.init(tmp_path / "theirs", utc_now()) and tmp_path / "theirs"
        with refused("TRUST_TARGETS"):
            client.publish(tmp_path / "b", sign_with=forged)
        with refused("TRUST_KEYS"):
            client.publish(tmp_path / "b", sign_with=online)
        assert signed(client) == ["1.2.0"]


def test_a_server_does_not_start_with_keys_that_cannot_sign(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    options = ("--data", str(tmp_path / "fleet"), "--port", "0", "--signing-keys", str(tmp_path / "keys"))
    done = subprocess.run([*SERVE, *options], cwd=TOP, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr.startswith("vla-fleet: TRUST_KEYS: "), done.stderr
    assert len(done.stderr.splitlines()) == 1
