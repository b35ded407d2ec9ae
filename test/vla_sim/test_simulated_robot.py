# SPDX-License-Identifier: Apache-2.0
"""A simulated robot does with an order what a real one does, over the real line, and steps exactly as it is asked to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.waits import wait_for
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from vla_fleet import protocol
from vla_fleet.protocol import Assign, Command, ModelUpdate, Order, Rollback
from vla_sim.fleet.simulated_robot import Behaviour, SimulatedRobot

A, B = "1.0.0", "1.1.0"


@contextmanager
def orders_by_line(*orders: tuple[str, Order]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Give the URL of a server that gives these orders to whoever connects, and what the robot said to it."""
    said: list[dict[str, Any]] = []

    def talk(line: ServerConnection) -> None:
        try:
            said.append(json.loads(line.recv()))
            line.send(protocol.Welcome(protocol=1, robot="arm", heartbeat_s=5.0).model_dump_json())
            for name, order in orders:
                line.send(Command(id=name, order=order).model_dump_json())
            for frame in line:
                said.append(json.loads(frame))
                if "seq" in said[-1]:
                    line.send(protocol.Received(seq=said[-1]["seq"]).model_dump_json())
        except ConnectionClosed:
            pass

    with serve(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}", said
        finally:
            server.shutdown()
            thread.join(40)


def update(version: str, *, activate: bool = True) -> ModelUpdate:
    digest = f"{version.replace('.', ''):0>64}"
    return ModelUpdate(
        name="pick", version=version, manifest_url="http://x/m", manifest_sha256=digest, activate=activate
    )


def carried_out(robot: SimulatedRobot, folder: Path, *orders: tuple[str, Order]) -> list[tuple[str, str]]:
    """Let a robot carry orders out; return the last word about each: state and code."""
    with orders_by_line(*orders) as (url, said):
        robot.connect(url, "token", folder)
        try:

            def ends() -> list[tuple[str, str]]:
                acks = [m for m in said if m["type"] == "ack" and protocol.AckState(m["state"]).final]
                return [(m["state"], m["error_code"]) for name, _ in orders for m in acks if m["command_id"] == name]

            wait_for(lambda: len(ends()) == len(orders), "the end of every order")
            return ends()
        finally:
            robot.disconnect()


def rate(robot: SimulatedRobot, count: int) -> float:
    return sum(outcome.success for outcome in robot.episodes(count)) / count


def test_orders_end_as_on_a_real_robot(tmp_path: Path) -> None:
    robot = SimulatedRobot("arm")
    robot.ends["1.2.0"] = "ROLLED_BACK", "SCORES_WORSE"
    robot.ends["1.3.0"] = "REJECTED", "DIGEST_FILE"
    found = carried_out(
        robot, tmp_path,
        ("c1", update(A)), ("c2", update(B, activate=False)), ("c3", update(B)), ("c4", update("1.2.0")),
        ("c5", update("1.2.0")), ("c6", update("1.3.0")), ("c7", Rollback()), ("c8", Rollback()),
    )  # fmt: skip
    assert found == [
        ("DONE", ""), ("DONE", ""), ("DONE", ""), ("FAILED", "SCORES_WORSE"), ("REFUSED", "VERSION_BLOCKED"),
        ("REFUSED", "DIGEST_FILE"), ("DONE", ""), ("FAILED", "NO_PREVIOUS"),
    ]  # fmt: skip
    assert robot.active == A and sorted(robot.on_disk) == [A, B, "1.2.0"]


def test_episodes_are_as_good_as_the_version_and_the_same_each_time() -> None:
    behaviours = {A: Behaviour(success=0.9), B: Behaviour(success=0.5)}
    courses: list[Sequence[bool]] = []
    for _ in range(2):
        robot = SimulatedRobot("arm", behaviours, seed=3)
        assert robot.episodes(5) == [], "nothing acts yet"
        robot.offer("u1", update(A))
        good = rate(robot, 2000)
        robot.offer("u2", update(B))
        assert (abs(good - 0.9) < 0.03, abs(rate(robot, 2000) - 0.5) < 0.05) == (True, True)
        courses.append([outcome.success for outcome in robot.episodes(50)])
    assert courses[0] == courses[1]


def test_an_assignment_draws_each_episode_survives_a_restart_and_ends_only_by_its_own_end(tmp_path: Path) -> None:
    robot = SimulatedRobot("arm", episode_arms=True)
    assign = Assign(experiment="x", versions=[A, B], probability=0.3)
    assert carried_out(robot, tmp_path, ("c0", assign)) == [("FAILED", "MODEL_NOT_FOUND")]
    orders: list[tuple[str, Order]] = [("c1", update(B, activate=False)), ("c2", update(A)), ("c3", assign)]
    carried_out(robot, tmp_path, *orders, ("c4", Assign(experiment="another")))
    again = SimulatedRobot(
        "arm", episode_arms=True
    )  # the robot's process started anew; its bridge has kept the assignment
    again.on_disk, again.lineage = robot.on_disk, robot.lineage
    carried_out(again, tmp_path, ("c5", protocol.GetStatus()))
    for one in (robot, again):
        outcomes = one.episodes(1000)
        assert {(o.arm, o.version) for o in outcomes} == {("A", A), ("B", B)}
        assert 0.25 < sum(o.arm == "B" for o in outcomes) / 1000 < 0.35
    carried_out(again, tmp_path, ("c6", Assign(experiment="x")))
    assert {(o.arm, o.version) for o in again.episodes(10)} == {("", A)}


def test_what_happens_offline_is_reported_at_the_next_connection_on_the_robots_own_clock(tmp_path: Path) -> None:
    clock = [1000.0]
    robot = SimulatedRobot("arm", now=lambda: clock[0])
    robot.offer("u1", update(A))
    clock[0] = 5000.0
    robot.episodes(3)
    with orders_by_line() as (url, said):
        robot.connect(url, "token", tmp_path)
        try:
            wait_for(lambda: sum(m["type"] == "outcome" for m in said) == 3, "the outcomes")
        finally:
            robot.disconnect()
    assert {m["time_s"] for m in said if m["type"] == "outcome"} == {5000.0}
    assert {m["time_s"] for m in said if m["type"] == "event" and m["to_state"] != protocol.ACTIVE} == {1000.0}
    assert not robot.online
