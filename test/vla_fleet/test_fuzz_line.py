# SPDX-License-Identifier: Apache-2.0
"""Whatever a robot says, the server goes on: no traceback, no other robot disturbed, what is stored is consistent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fleet import FleetServer
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from vla_fleet import protocol
from vla_fleet.client import Client

HELLO = {"type": "hello", "protocols": [1], "outbox_id": "box"}
GOOD: list[dict[str, Any]] = [
    HELLO,
    {"type": "status", "time_s": 1.0, "state": "IDLE", "versions": ["1.0.0"], "progress": 0.5},
    {"type": "event", "seq": 1, "time_s": 1.0, "from_state": "IDLE", "to_state": "CHECKING"},
    {"type": "event", "seq": 2, "time_s": 2.0, "from_state": "", "to_state": "ACTIVE", "version": "1.0.0"},
    {"type": "outcome", "seq": 3, "time_s": 3.0, "episode_id": "e1", "success": True},
    {"type": "ack", "seq": 4, "time_s": 4.0, "command_id": "c-1", "state": "DONE"},
]
ODD = [
    0,
    -1,
    2**63,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 5000,
    "\x00",
    "\ud800",
    None,
    True,
    [],
    {},
    [[]] * 300,
]
odd = st.sampled_from(ODD) | st.text() | st.integers() | st.floats()


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A good message in which something is odd, missing, new or cut off."""
    message = dict(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 2))):
        message[draw(st.sampled_from(sorted(message)) | st.text(max_size=5))] = draw(odd)
    if draw(st.booleans()):
        message.pop(draw(st.sampled_from(sorted(message))))
    text = json.dumps(message)
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 9)) == 0 else text


frames = st.lists(
    mutated() | st.sampled_from([json.dumps(message) for message in GOOD]) | st.text() | st.binary()
    | st.just("[" * 10_000) | st.just('{"type":' * 1000) | st.just("x" * (protocol.MAX_FRAME_BYTES + 1)),
    max_size=12,
)  # fmt: skip


class Fleet:
    """A server with a robot that misbehaves and one that does not."""

    def __init__(self, server: FleetServer, client: Client) -> None:
        self.server, self.client = server, client
        self.wild = client.enrol(client.make_code("wild"))[1]
        self.calm = client.enrol(client.make_code("calm"))[1]
        self.seq = 0

    def line(self, token: str) -> Any:
        url = f"{self.server.url.replace('http', 'ws', 1)}/v1/robots/connect"
        return connect(
            url,
            additional_headers={"Authorization": f"Bearer {token}"},
            max_size=None,
            open_timeout=40,
            close_timeout=5,
        )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with FleetServer(tmp_path_factory.mktemp("fleet"), heartbeat_s=60.0) as server, server.client() as client:
        yield Fleet(server, client)


@pytest.fixture(scope="module")
def calm(fleet: Fleet) -> Iterator[ClientConnection]:
    with fleet.line(fleet.calm) as line:
        line.send(json.dumps({**HELLO, "outbox_id": "calm"}))
        yield line


@settings(max_examples=80, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(frames=frames, begins_well=st.booleans())
def test_whatever_a_robot_says_the_others_are_served_and_what_is_stored_can_be_read(
    fleet: Fleet, calm: ClientConnection, frames: list[str | bytes], begins_well: bool
) -> None:
    with suppress(ConnectionClosed), fleet.line(fleet.wild) as line:
        if begins_well:
            line.send(json.dumps(HELLO))
        for frame in frames:
            line.send(frame)
        line.ping().wait(0.02)  # it may have been closed in the middle
    fleet.seq += 1
    event = {"type": "event", "seq": fleet.seq, "time_s": 1.0, "from_state": "A", "to_state": "B"}
    calm.send(json.dumps(event))
    while json.loads(calm.recv(40)) != {"type": "received", "seq": fleet.seq}:
        pass
    assert fleet.client.robot("wild")["name"] == "wild"


def test_after_all_of_it_the_log_has_no_traceback_and_the_record_is_whole(fleet: Fleet, calm: ClientConnection) -> None:
    assert len(fleet.client.events("calm", 1000)) == fleet.seq > 0, "each event of the other robot once"
    for event in fleet.client.events("wild", 1000):
        assert event["robot"] == "wild" and event["to_state"] is not None
    assert isinstance(fleet.client.history("wild"), list)
    assert "Traceback" not in fleet.server.log, fleet.server.log[fleet.server.log.index("Traceback") :][-1500:]
    assert '"level": "error"' not in fleet.server.log


def test_fuzzing_covers_every_message(tmp_path: Path) -> None:
    types = {message["type"] for message in GOOD}
    document = protocol.FROM_ROBOT.json_schema()
    assert types == set(document["discriminator"]["mapping"])
