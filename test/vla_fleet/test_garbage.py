# SPDX-License-Identifier: Apache-2.0
"""Garbage collection never takes what a robot holds or may go back to, an alias names, or somebody is about to publish."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.bundles import make_bundle
from support.fleet import TOP, FleetServer
from support.fleet_app import FleetApp
from support.waits import wait_for
from websockets.sync.client import connect

from vla_checkpoint import load_manifest
from vla_fleet.client import Client
from vla_fleet.registry.garbage import GRACE_S


@pytest.fixture
def app(tmp_path: Path) -> Iterator[FleetApp]:
    with FleetApp(tmp_path / "fleet", heartbeat_s=60.0) as app:
        yield app


@pytest.fixture
def client(app: FleetApp) -> Iterator[Client]:
    with app.client() as client:
        yield client


def publish(client: Client, folder: Path, version: str, name: str = "pick") -> str:
    """Publish a version whose weights no other version has; return their SHA-256."""
    make_bundle(folder / name / version, name=name, version=version, seed=zlib.crc32(f"{name} {version}".encode()))
    client.publish(folder / name / version)
    weights = load_manifest(folder / name / version).file("model.safetensors")
    assert weights is not None
    return weights.sha256


def say(app: FleetApp, client: Client, robot: str, **status: object) -> None:
    """Let a robot say how it stands."""
    token = client.enrol(client.make_code(robot))[1]
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{app.url.replace('http', 'ws', 1)}/v1/robots/connect"
    with connect(url, additional_headers=headers, open_timeout=40) as line:
        line.send(json.dumps({"type": "hello", "protocols": [1], "outbox_id": "box"}))
        line.send(json.dumps({"type": "status", "time_s": 1.0, **status}))
        wait_for(lambda: client.robot(robot)["status"], "the status")


def on_disk(app: FleetApp) -> set[str]:
    return {path.name for path in app.rooms.blobs.root.iterdir()}


@pytest.mark.parametrize(
    "place", ["committed_version", "previous_version", "trial_version", "active_version", "versions"]
)
def test_what_a_robot_holds_or_may_go_back_to_stays_though_it_is_retired(
    app: FleetApp, client: Client, tmp_path: Path, place: str
) -> None:
    held, free = publish(client, tmp_path, "1.0.0"), publish(client, tmp_path, "1.1.0")
    publish(client, tmp_path, "1.2.0")
    say(app, client, "arm", **{place: ["1.0.0"] if place == "versions" else "1.0.0"})
    for version in ("1.0.0", "1.1.0"):
        client.retire("pick", version)
    app.clock.ahead_s = GRACE_S + 1
    assert client.collect_garbage(dry_run=True) == client.collect_garbage(dry_run=True), "a dry run removes nothing"
    found = client.collect_garbage()
    assert found["held"] == ["pick@1.0.0"] and found["blobs"] == 1
    assert held in on_disk(app) and free not in on_disk(app)


def test_what_is_ordered_or_named_or_the_base_of_an_adapter_stays(
    app: FleetApp, client: Client, tmp_path: Path
) -> None:
    blobs = [publish(client, tmp_path, version) for version in ("1.0.0", "1.1.0", "1.2.0")]
    client.enrol(client.make_code("arm"))
    client.deploy("pick@1.0.0", ["arm"])
    client.set_alias("pick", "champion", "1.1.0")
    client.retire("pick", "1.0.0")
    app.clock.ahead_s = GRACE_S + 1
    assert client.collect_garbage()["blobs"] == 0
    assert set(blobs) <= on_disk(app)


def test_what_a_robot_said_it_has_committed_stays_though_its_status_was_lost(
    app: FleetApp, client: Client, tmp_path: Path
) -> None:
    held = publish(client, tmp_path, "1.0.0")
    publish(client, tmp_path, "1.1.0")
    token = client.enrol(client.make_code("arm"))[1]
    order = client.deploy("pick@1.0.0", ["arm"])[0]["id"]
    ack = {"type": "ack", "seq": 1, "time_s": 1.0, "command_id": order, "state": "DONE", "robot_state": "COMMITTED"}
    url = f"{app.url.replace('http', 'ws', 1)}/v1/robots/connect"
    with connect(url, additional_headers={"Authorization": f"Bearer {token}"}) as line:
        line.send(json.dumps({"type": "hello", "protocols": [1], "outbox_id": "box"}))
        line.send(json.dumps(ack))
        wait_for(lambda: client.commands([order])[0]["final"], "the end of the order")
    client.retire("pick", "1.0.0")
    app.clock.ahead_s = GRACE_S + 1
    assert client.collect_garbage()["held"] == ["pick@1.0.0"] and held in on_disk(app)


def test_an_upload_is_left_alone_for_a_day_from_when_somebody_last_asked_for_it(
    app: FleetApp, client: Client, tmp_path: Path
) -> None:
    manifest = make_bundle(tmp_path / "b", name="pick", version="1.0.0")
    for entry in manifest.files:
        client._upload(tmp_path / "b" / entry.path, entry.sha256, lambda done: None)
    app.clock.ahead_s = GRACE_S - 60
    assert client.collect_garbage()["blobs"] == 0
    assert client._has_blob(manifest.files[0].sha256), "a publisher asks, and would not send it again"
    app.clock.ahead_s = GRACE_S + 60
    assert client.collect_garbage()["blobs"] == len(manifest.files) - 1
    assert on_disk(app) == {manifest.files[0].sha256}
    client.publish(tmp_path / "b")
    app.clock.ahead_s = 10 * GRACE_S
    assert client.collect_garbage()["blobs"] == 0
    assert {entry.sha256 for entry in manifest.files} == on_disk(app)


def is_under_way(upload: Path) -> bool:
    with suppress(FileNotFoundError):  # it is whole, and has its name
        return upload.stat().st_size > 1 << 20
    return False


@pytest.mark.parametrize("victim", ["publisher", "server"])
def test_a_publication_that_is_killed_is_not_seen_and_its_files_go(tmp_path: Path, victim: str) -> None:
    data = tmp_path / "fleet"
    make_bundle(tmp_path / "b", version="1.0.0", files={"notes.txt": b"slow" * (4 << 20)})
    code = (
        "import sys, time; from vla_fleet.client import Client;"
        f"Client(*sys.argv[1:]).publish({str(tmp_path / 'b')!r}, progress=lambda done, total: time.sleep(1.0))"
    )
    with FleetServer(data) as server:
        command = [sys.executable, "-c", code, server.url, server.key]
        with subprocess.Popen(command, cwd=TOP, stderr=subprocess.DEVNULL) as publisher:
            incoming = data / "blobs" / "incoming"
            wait_for(lambda: incoming.exists() and any(map(is_under_way, incoming.iterdir())), "an upload under way")
            if victim == "publisher":
                publisher.kill()
            else:
                server.kill()
            publisher.wait(30)
        if victim == "publisher":
            with server.client() as client:
                assert client.models() == []
    with FleetApp(data) as app, app.client() as client:
        assert client.models() == [] and not list((data / "blobs" / "incoming").iterdir())
        app.clock.ahead_s = GRACE_S + 60
        client.collect_garbage()
        assert not on_disk(app)
        client.publish(tmp_path / "b")
        assert [version["version"] for version in client.models()] == ["1.0.0"]
