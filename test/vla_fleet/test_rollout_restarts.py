# SPDX-License-Identifier: Apache-2.0
"""A rollout ends as if nothing had happened though the server is killed with SIGKILL at every step of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support.bundles import make_bundle
from support.fleet import TOP, FleetServer, enrolled
from support.rollouts import MODEL, NEW, OLD
from support.waits import wait_for

from vla_evidence.log.replay import replay_file
from vla_fleet.client import Client
from vla_fleet.errors import FleetError
from vla_sim.fleet.simulated_robot import Behaviour, SimulatedRobot

NAMES = ("arm_0", "arm_1")
EPISODES = 80


@contextmanager
def dying(data: Path, port: int) -> Iterator[None]:
    environment = {**os.environ, "PYTHONPATH": f"{TOP}:{TOP / 'test'}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "support.dying_fleet_server", str(data), str(port)]
    process = subprocess.Popen(command, env=environment)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


def connect(robots: dict[str, SimulatedRobot], tokens: dict[str, str], url: str, folder: Path) -> None:
    """Bring robots online whose line has been lost; a bridge by itself would wait longer each time."""
    for name, robot in robots.items():
        if not robot.online:
            robot.disconnect()
            (folder / name).mkdir(exist_ok=True)
            robot.connect(url, tokens[name], folder / name)


def follow(client: Client, rollout: str, go_on: Any, robots: dict[str, SimulatedRobot]) -> dict[str, Any]:
    """Let robots play once the rollout is judged, and wait for its end."""
    played, deadline = False, time.monotonic() + 90.0
    while time.monotonic() < deadline:
        go_on()
        with suppress(FleetError):  # the server is dead just now
            found = client.rollout(rollout)
            if found["state"] in ("DONE", "ROLLED_BACK"):
                return found
            if found["state"] == "JUDGING" and not played:
                played = True
                for robot in robots.values():
                    robot.episodes(EPISODES)
        time.sleep(0.3)
    raise AssertionError(f"no end: {found}")


@pytest.mark.parametrize(
    ("judge", "success", "duration_s", "end"),
    [("simple", (0.0, 1.0), 1.0, "DONE"), ("evidence", (1.0, 0.0), 100.0, "ROLLED_BACK")],
)
def test_a_server_that_is_killed_at_every_step_brings_a_rollout_to_the_same_end(
    tmp_path: Path, judge: str, success: tuple[float, float], duration_s: float, end: str
) -> None:
    behaviours = {OLD: Behaviour(success[0], 0.01), NEW: Behaviour(success[1], 0.01)}
    robots = {name: SimulatedRobot(name, behaviours, episode_arms=True) for name in NAMES}
    with FleetServer(tmp_path / "fleet") as server, server.client() as client:
        for seed, version in enumerate((OLD, NEW)):
            make_bundle(tmp_path / version, version=version, seed=seed)
            client.publish(tmp_path / version)
        tokens = {name: enrolled(client, name) for name in NAMES}
        connect(robots, tokens, server.url, tmp_path)
        ids = [command["id"] for command in client.deploy(f"pick_place@{OLD}", NAMES)]
        wait_for(lambda: all(command["final"] for command in client.commands(ids)), "the old version")
        wait_for(lambda: all(r["status"].get("committed_version") for r in client.robots()), "the robots' statuses")
        server.stop()
        stages = [
            {"name": "canary", "share": 0.5, "duration_s": duration_s, "margin": 0.2},
            {"name": "full", "share": 1.0},
        ]
        with dying(server.data, server.port):
            wait_for(lambda: alive(client), "the first life")
            with suppress(FleetError):  # the server may die before it has answered
                client.create_rollout(MODEL, stages=stages, judge=judge)
            rollout = again(client.rollouts)[0]["id"]
            try:
                found = follow(client, rollout, lambda: connect(robots, tokens, server.url, tmp_path), robots)
                log = again(lambda: client.rollout_log(rollout))
            finally:
                for robot in robots.values():
                    robot.disconnect()
        lives = int((server.data / "lives").read_text())
    assert found["state"] == end
    assert lives >= 6, "create, install, draw, judge, roll back, end: at least"
    assert [line["action"].removeprefix("rollout.") for line in found["history"] if "asking" not in line["action"]] == (
        ["create", "judging", "installing", "done"]
        if end == "DONE"
        else ["create", "judging", "rolling_back", "rolled_back"]
    )
    for robot in robots.values():
        assert robot.lineage == ([OLD, NEW] if end == "DONE" else [OLD]) and not robot.blocked
        assert list(robot.updates.values()).count(NEW) == (2 if end == "DONE" else 1), "installed once, activated once"
        assert not robot._assignment
    (tmp_path / "log.jsonl").write_bytes(log)
    assert replay_file(tmp_path / "log.jsonl").outcomes == found["outcomes"]["counted"], (
        "neither lost nor taken in twice"
    )


def alive(client: Client) -> bool:
    with suppress(FleetError):
        return isinstance(client.rollouts(), list)
    return False


def again(ask: Any) -> Any:
    def answer() -> Any:
        with suppress(FleetError):
            return ask()
        return None

    return wait_for(answer, "an answer")
