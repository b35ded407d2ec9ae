# SPDX-License-Identifier: Apache-2.0
"""The robots' line: orders are carried out once, answers are what really happened, and nothing is lost while it is down."""

from __future__ import annotations

import json
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bundles import make_bundle
from support.fleet import FleetServer, enrolled
from support.waits import wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from vla_fleet import protocol
from vla_fleet.client import Client
from vla_fleet.serving import listen
from vla_sim.fleet.simulated_robot import SimulatedRobot


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetServer]:
    with FleetServer(tmp_path_factory.mktemp("fleet"), heartbeat_s=5.0) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: FleetServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with server.client() as client:
        for seed, version in enumerate(("1.0.0", "1.1.0")):
            folder = tmp_path_factory.mktemp("bundles") / version
            make_bundle(folder, version=version, seed=seed)
            client.publish(folder)
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A robot of this test's own."""
    return f"arm_{zlib.crc32(request.node.name.encode()):x}"


def end_of(client: Client, command: str) -> dict[str, Any]:
    def done() -> dict[str, Any] | None:
        found = client.commands([command])[0]
        return found if found["final"] else None

    found: dict[str, Any] = wait_for(done, f"the end of {command}")
    return found


def raw(server: FleetServer, token: str) -> Any:
    return connect(
        f"{server.url.replace('http', 'ws', 1)}/v1/robots/connect",
        additional_headers={"Authorization": f"Bearer {token}"},
        open_timeout=40,
    )


def hello(**fields: Any) -> str:
    return json.dumps({"type": "hello", "protocols": [1], "outbox_id": "box", **fields})


def test_an_update_that_the_robot_refuses_or_rolls_back_is_reported_as_that(
    server: FleetServer, client: Client, name: str, tmp_path: Path
) -> None:
    robot = SimulatedRobot(name)
    robot.connect(server.url, enrolled(client, name), tmp_path)
    try:
        for end, code, state in (
            ("REJECTED", "DIGEST_FILE", "REFUSED"),
            ("ROLLED_BACK", "SCORES_WORSE", "FAILED"),
            ("COMMITTED", "", "DONE"),
        ):
            robot.ends["1.0.0"] = end, code
            robot.blocked.clear()
            command = end_of(client, client.deploy("pick_place@1.0.0", [name])[0]["id"])
            assert (command["state"], command["robot_state"], command["error_code"]) == (state, end, code)
    finally:
        robot.disconnect()


def test_orders_wait_for_a_robot_that_is_away_and_are_carried_out_once_and_in_sequence(
    server: FleetServer, client: Client, name: str, tmp_path: Path
) -> None:
    token, robot = enrolled(client, name), SimulatedRobot(name)
    first = client.deploy("pick_place@1.0.0", [name])[0]["id"]
    assert client.deploy("pick_place@1.0.0", [name])[0]["id"] == first, "ordered already"
    second = client.deploy("pick_place@1.1.0", [name])[0]["id"]
    back = client.rollback([name])[0]["id"]
    assert not client.robot(name)["online"]
    for _ in range(2):  # the second bridge finds that all is done
        robot.connect(server.url, token, tmp_path)
        assert [end_of(client, c)["state"] for c in (first, second, back)] == ["DONE"] * 3
        robot.disconnect()
    assert list(robot.updates.values()) == ["1.0.0", "1.1.0"] and robot.rollbacks == ["1.0.0"]


def test_what_happens_without_a_network_is_known_afterwards_once_and_in_sequence(tmp_path: Path, name: str) -> None:
    with FleetServer(tmp_path / "fleet") as server:
        with server.client() as client:
            token = enrolled(client, name)
        robot = SimulatedRobot(name)
        bridge = robot.connect(server.url, token, tmp_path)
        wait_for(lambda: bridge.line.connected, "the line")
        server.kill()
        wait_for(lambda: not bridge.line.connected, "the loss of the line")
        for i in range(300):
            bridge.on_event(protocol.Event(time_s=time.time() + i, from_state="IDLE", to_state=f"S{i}"))
        wait_for(lambda: bridge.outbox_size == 300, "the outbox")
        robot.disconnect()
        server.start()
        bridge = robot.connect(server.url, token, tmp_path)  # a restart of the bridge loses none
        try:
            wait_for(lambda: bridge.outbox_size == 0, "the outbox to be sent")
        finally:
            robot.disconnect()
        with server.client() as client:
            events = client.events(name, limit=1000)
    assert [event["to_state"] for event in reversed(events)] == [f"S{i}" for i in range(300)]


def test_a_message_that_is_sent_again_is_stored_once(server: FleetServer, client: Client, name: str) -> None:
    event = {"type": "event", "seq": 1, "time_s": 1.0, "from_state": "IDLE", "to_state": "CHECKING"}
    outcome = {"type": "outcome", "seq": 2, "time_s": 1.0, "episode_id": "e1", "success": True}
    token = enrolled(client, name)
    for _ in range(2):
        with raw(server, token) as line:
            line.send(hello())
            assert json.loads(line.recv(40))["type"] == "welcome"
            for message in (event, outcome, event):
                line.send(json.dumps(message))
            while json.loads(line.recv(40)) != {"type": "received", "seq": 2}:
                pass
    assert len(client.events(name)) == 1


def test_a_robot_can_speak_only_for_itself(server: FleetServer, client: Client, name: str) -> None:
    mine, other = enrolled(client, name), enrolled(client, f"{name}_b")
    command = client.deploy("pick_place@1.0.0", [f"{name}_b"])[0]["id"]
    ack = {"type": "ack", "seq": 1, "time_s": 1.0, "command_id": command, "state": "DONE"}
    with raw(server, mine) as line:
        line.send(hello())
        line.send(json.dumps(ack))
        while json.loads(line.recv(40)) != {"type": "received", "seq": 1}:
            pass
    assert client.commands([command])[0]["state"] == "WAITING"
    client._request("DELETE", f"/v1/robots/{name}_b/token")
    with pytest.raises(InvalidStatus):
        raw(server, other)


@pytest.mark.parametrize(
    ("first", "why"),
    [
        ("nonsense", "MESSAGE_INVALID"),
        ('{"type":"status","time_s":1}', "HELLO_MISSING"),
        (hello(protocols=[99]), "PROTOCOL_UNKNOWN"),
        (hello(outbox_id="x" * 500), "MESSAGE_INVALID"),
    ],
)
def test_a_line_that_begins_wrong_is_closed_with_a_reason(
    server: FleetServer, client: Client, name: str, first: str, why: str
) -> None:
    with raw(server, enrolled(client, name)) as line:
        line.send(first)
        with pytest.raises(ConnectionClosed) as closed:
            line.recv(40)
    assert closed.value.rcvd is not None and closed.value.rcvd.reason.startswith(why)
    assert not client.robot(name)["online"]


def test_a_server_that_dies_while_it_answers_is_tried_again(tmp_path: Path) -> None:
    robot = SimulatedRobot("arm")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(40.0)
        robot.connect(f"http://127.0.0.1:{server.getsockname()[1]}", "token", tmp_path)
        try:
            for _ in range(2):
                server.accept()[0].close()
        finally:
            robot.disconnect()


def test_what_a_robot_says_before_it_hangs_up_is_stored(server: FleetServer, client: Client, name: str) -> None:
    with raw(server, enrolled(client, name)) as line:
        line.send(hello())
        while json.loads(line.recv(40))["type"] != "received":
            pass
        event = {"type": "event", "seq": 1, "time_s": 1.0, "from_state": "TRIAL", "to_state": "COMMITTED"}
        line.send(json.dumps(event))
        line.send(json.dumps({"type": "status", "time_s": 1.0, "state": "STOPPING"}))
    wait_for(lambda: client.robot(name)["status"].get("state") == "STOPPING", "the last status")
    assert [found["to_state"] for found in client.events(name)] == ["COMMITTED"], "stored with it"


def test_compression_keeps_little_of_a_line(server: FleetServer, client: Client, name: str) -> None:
    with raw(server, enrolled(client, name)) as line:
        agreed = line.response.headers["Sec-WebSocket-Extensions"]
    assert "server_no_context_takeover" in agreed and "client_max_window_bits=10" in agreed


def test_a_connection_whose_other_end_takes_nothing_ends_after_a_minute() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()[:2], 40.0):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000  # [ms]
