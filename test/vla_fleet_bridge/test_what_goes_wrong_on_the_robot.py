# SPDX-License-Identifier: Apache-2.0
"""No rollback waits and no order is stuck: a busy manager, a full disk, a lost answer, a clock that is set back."""

from __future__ import annotations

import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bridge import Robot, stub
from support.waits import wait_for

from vla_fleet import protocol
from vla_fleet_bridge import orders
from vla_fleet_bridge.config import BridgeError, BridgeSettings, token
from vla_fleet_bridge.outbox import Outbox

DIGEST = "d" * 64


def update(number: int) -> dict[str, Any]:
    order = {"type": "MODEL_UPDATE", "name": "pick", "version": f"1.{number}.0", "manifest_url": "http://x/m.json"}
    return {"type": "command", "id": f"c-{number}", "order": {**order, "manifest_sha256": DIGEST}}


def back(name: str = "c-back", version: str = "1.0.0") -> dict[str, Any]:
    return {"type": "command", "id": name, "order": {"type": "ROLLBACK", "version": version}}


class Server:
    """A server that sends what the test says, and knows how orders stand."""

    def __init__(self) -> None:
        self._news, self._commands = threading.Condition(), list[dict[str, Any] | str]()
        self.acks: dict[str, tuple[str, str]] = {}
        self.acts: list[tuple[str, str]] = []
        self.lines = 0

    def order(self, *commands: dict[str, Any] | str) -> None:
        with self._news:
            self._commands += commands
            self._news.notify_all()

    def talk(self, line: Any) -> None:
        line.recv(40)
        self.lines += 1
        line.send(json.dumps({"type": "welcome", "protocol": 1, "robot": "arm", "heartbeat_s": 60.0}))
        sent = 0
        while True:
            for command in self._commands[sent:]:
                line.send(command if isinstance(command, str) else json.dumps(command))
                sent += 1
            try:
                message = json.loads(line.recv(0.02))
            except TimeoutError:
                continue
            if message["type"] == "ack":
                self.acks[message["command_id"]] = message["state"], message["error_code"]
            if message["type"] == "event" and message["to_state"] == protocol.ACTIVE:
                self.acts.append((message["version"], message["cause"]))
            if "seq" in message:
                line.send(json.dumps({"type": "received", "seq": message["seq"]}))

    def ends(self, command: str) -> tuple[str, str]:
        def end() -> tuple[str, str] | None:
            ack = self.acks.get(command)
            return ack if ack is not None and ack[0] in ("DONE", "REFUSED", "FAILED") else None

        found: tuple[str, str] = wait_for(end, f"the end of {command}")
        return found


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def robot(server: Server, tmp_path: Path) -> Iterator[Robot]:
    with stub(server.talk) as url, Robot(url, "vr_x", tmp_path / "arm") as robot:
        wait_for(lambda: robot.engine.line.connected, "the line")
        yield robot


def offered(robot: Robot) -> list[str]:
    return [update_id for update_id, _ in robot.offers]


def test_a_rollback_does_not_wait_for_an_update_that_waits_for_another_and_that_one_does_not_come_after_it(
    server: Server, robot: Robot
) -> None:
    gone_back: list[str] = []
    robot.rolled_back = gone_back.append
    robot.acts(1.0, "1.0.0", state="IDLE")
    server.order(update(1))
    wait_for(lambda: offered(robot) == ["c-1"], "the offer")
    robot.acts(2.0, "1.1.0", state="TRIAL", update_id="c-1", trial_version="1.1.0", committed_version="1.0.0")
    server.order(update(2), back())
    assert server.ends("c-back") == ("DONE", "") and gone_back == ["1.0.0"]
    assert server.ends("c-2") == ("FAILED", "SUPERSEDED")
    robot.acts(3.0, "1.0.0", state="ROLLED_BACK", update_id="c-1")
    server.order(update(3))
    wait_for(lambda: "c-3" in offered(robot), "the next update's offer")
    assert "c-2" not in offered(robot)


def test_a_rollback_overtakes_an_update_that_the_manager_does_not_take_up(
    server: Server, robot: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "_OFFER_AGAIN_S", 0.1)
    robot.acts(1.0, "1.1.0", state="IDLE")
    server.order(update(1))
    wait_for(lambda: offered(robot), "the offer")
    server.order(back())
    assert server.ends("c-back") == ("DONE", "")


def test_an_update_of_which_the_manager_says_nothing_more_ends_and_those_after_it_go_on(
    server: Server, robot: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "_OFFER_AGAIN_S", 0.01)
    server.order(update(1), update(2))
    times_s = itertools.count(1)

    def went_on() -> bool:
        robot.acts(float(next(times_s)), "1.0.0", state="ROLLED_BACK", update_id="somebody's")
        return "c-2" in offered(robot)

    wait_for(went_on, "the offer of the second")
    assert server.ends("c-1") == ("FAILED", "OUTCOME_UNKNOWN")


def test_an_update_is_offered_again_though_the_robots_clock_is_set_back(
    server: Server, robot: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "_OFFER_AGAIN_S", 0.2)
    robot.acts(time.time(), "1.0.0", state="IDLE")
    server.order(update(1))
    wait_for(lambda: offered(robot), "the offer")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86400.0)
    robot.acts(now - 86400.0, "1.0.0", state="IDLE")
    wait_for(lambda: len(offered(robot)) > 1, "the offer again")


def test_why_a_version_acts_is_known_though_the_robots_clock_is_set_back(server: Server, robot: Robot) -> None:
    robot.acts(90_000.0, "1.0.0")
    robot.acts(90_010.0, "1.0.0")
    robot.acts(100.0, "1.1.0", state="TRIAL", active_cause="UPDATE")
    robot.acts(101.0, "", state="IDLE")
    robot.acts(50.0, "", state="IDLE")
    wait_for(lambda: len(server.acts) == 3, "the record")
    assert server.acts == [("1.0.0", "FOUND"), ("1.1.0", "UPDATE"), ("", "")]


def test_why_a_version_acts_is_known_though_its_status_comes_before_the_reason(server: Server, robot: Robot) -> None:
    robot.acts(10.0, "1.0.0")
    robot.acts(20.0, "1.1.0", state="PREPARING")
    robot.acts(21.0, "1.1.0", state="IDLE", active_cause="WORKER_LOST")
    robot.acts(30.0, "1.2.0", state="IDLE")
    robot.acts(31.0, "1.3.0", state="SWAPPING")
    robot.acts(40.0, "1.4.0", state="IDLE")
    robot.acts(44.0, "1.4.0", state="IDLE")
    wait_for(lambda: len(server.acts) == 5, "the record")
    reasons = [("1.0.0", "FOUND"), ("1.1.0", "WORKER_LOST"), ("1.2.0", ""), ("1.3.0", "UPDATE"), ("1.4.0", "")]
    assert server.acts == reasons, "nobody ever said why of 1.2.0 and 1.4.0"


def test_an_order_that_the_robots_software_does_not_know_is_refused_and_the_line_stays(
    server: Server, robot: Robot
) -> None:
    robot.acts(1.0, "1.1.0", state="IDLE")
    server.order({"type": "command", "id": "c-new", "order": {"type": "DANCE"}}, back())
    assert server.ends("c-new") == ("REFUSED", "MESSAGE_INVALID")
    assert server.ends("c-back") == ("DONE", "") and server.lines == 1


@pytest.mark.parametrize(
    "nonsense",
    ["", "[]", '{"type": "command"}', '{"type": "command", "id": {}}', f'{{"type": "received", "seq": {10**30}}}'],
)
def test_whatever_a_server_says_the_robot_comes_back_and_carries_out_what_is_ordered(
    server: Server, tmp_path: Path, nonsense: str
) -> None:
    with stub(server.talk) as url, Robot(url, "vr_x", tmp_path / "arm") as robot:
        robot.acts(1.0, "1.1.0", state="IDLE")
        wait_for(lambda: robot.engine.line.connected, "the line")
        server.order(nonsense)
        wait_for(lambda: not robot.engine.line.connected, "the end of the line")
        server._commands[:] = [back()]
        assert server.ends("c-back") == ("DONE", "")


def test_orders_go_on_when_the_disk_has_room_again(server: Server, robot: Robot) -> None:
    robot.acts(1.0, "1.1.0", state="IDLE")
    wait_for(lambda: server.acts, "what the robot runs, so that nothing else waits to be written")
    database: Any = robot.engine._outbox._db

    class Full:
        """What SQLite does on a full disk."""

        def execute(self, statement: str, *values: Any) -> Any:
            if not statement.startswith("SELECT"):
                raise sqlite3.OperationalError("database or disk is full")
            return database.execute(statement, *values)

    robot.engine._outbox._db = Full()  # type: ignore[assignment]
    server.order(back())
    wait_for(lambda: "full" in robot.engine.line.message, "what the line says")
    robot.engine.on_outcome(protocol.Outcome(time_s=1.0, episode_id="e", success=True))
    wait_for(lambda: robot.engine.dropped == 1, "the count of what was lost")
    robot.acts(2.0, "1.2.0", state="IDLE")
    robot.engine._outbox._db = database
    robot.acts(3.0, "1.2.0", state="IDLE")
    assert server.ends("c-back") == ("DONE", "")


def test_an_error_while_an_order_is_carried_out_keeps_no_rollback_from_it(
    server: Server, robot: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Callable[[], None]] = []

    def broken(version: str) -> None:
        errors.append(lambda: None)
        if len(errors) < 3:
            raise RuntimeError("a defect")

    robot.rolled_back = broken
    monkeypatch.setattr(orders, "_RETRY_S", 0.05)
    robot.acts(1.0, "1.1.0", state="IDLE")
    server.order(back())
    assert server.ends("c-back") == ("DONE", "") and len(errors) == 3


def test_a_final_answer_that_a_full_outbox_dropped_is_given_again_when_the_order_is_repeated(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "box.db", limit=10)
    command = protocol.Command(id="c-1", order=protocol.Rollback(version="1.0.0"))
    box.add_order(command)
    done = protocol.Ack(time_s=1.0, command_id="c-1", state=protocol.AckState.DONE, version="1.0.0")
    box.answer(done)
    box.add_order(command)
    assert box.size == 1, "it waits already"
    for i in range(20):
        box.put(protocol.Outcome(time_s=1.0, episode_id=f"e{i}", success=True))
    assert not any(isinstance(m, protocol.Ack) for m in box.after(0))
    box.stored(box.after(0)[2].seq)
    assert not box.add_order(command), "it is not carried out again"
    assert [m.model_copy(update={"seq": 0}) for m in box.after(0) if isinstance(m, protocol.Ack)] == [done]
    box.close()


def test_a_damaged_outbox_is_put_aside_and_the_robot_has_a_line(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    first = Outbox(path)
    first.close()
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)
    box = Outbox(path)
    assert box.id != first.id and box.size == 0 and (tmp_path / "box.db.damaged").exists()
    box.close()


def test_a_code_is_not_used_up_where_the_token_finds_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    asked: list[object] = []
    with stub(asked.append) as url:
        settings = BridgeSettings(server=url, enrolment_code="code", state_dir=str(tmp_path / "file" / "state"))
        with pytest.raises(BridgeError, match="STATE_DIR"):
            token(settings)
    assert not asked


def test_an_empty_token_file_is_no_token(tmp_path: Path) -> None:
    (tmp_path / "token").touch()
    with pytest.raises(BridgeError, match="NOT_ENROLLED"):
        token(BridgeSettings(server="ws://127.0.0.1:9", state_dir=str(tmp_path)))
