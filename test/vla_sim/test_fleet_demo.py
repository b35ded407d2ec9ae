# SPDX-License-Identifier: Apache-2.0
"""Parts of the fleet's demonstration: its clock, and that what goes wrong is found. The whole is ``make demo-fleet``."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.fleet import FleetServer, enrolled
from support.waits import wait_for

from vla_sim.fleet.clock import FastClock
from vla_sim.fleet.demo.loops import Loop, undisturbed
from vla_sim.fleet.simulated_robot import SimulatedRobot


def test_the_fast_clock_is_one_for_all_processes_and_sleeps_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FastClock(time.time() - 10.0, 1000.0)
    for name, value in clock.environment().items():
        monkeypatch.setenv(name, value)
    assert FastClock.inherited() == clock
    begun_s = clock.now()
    asyncio.run(clock.sleep(500.0))
    assert clock.now() - begun_s >= 500.0
    assert clock.wall(clock.now()) == pytest.approx(time.time(), abs=40.0)  # a thousand times as fast: not by chance


def test_a_robot_of_the_fast_server_is_online_while_it_is_connected_and_offline_after_it_has_gone(
    tmp_path: Path,
) -> None:
    clock = FastClock(time.time(), 1000.0)
    command = (sys.executable, "-m", "vla_sim.fleet.fast_server")
    robot = SimulatedRobot("arm", now=clock.now)
    with FleetServer(tmp_path / "fleet", 0.5, command, clock.environment()) as server, server.client() as client:
        robot.connect(server.url, enrolled(client, "arm"), tmp_path)
        wait_for(lambda: client.robot("arm")["online"], "the robot")
        assert client.robot("arm")["last_seen_s"] > time.time(), "the server's clock is ahead"
        robot.disconnect()
        wait_for(lambda: not client.robot("arm")["online"], "the server to miss it")


GOOD = Loop("arm_1", 500, 0, 3, 0, 12.0, {}, 0.6)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"ticks": 0}, "never moved"),
        ({"missed": 1}, "1 ticks missed"),
        ({"starved": 2}, "2 starved"),
        ({"holds": {"STARVED": 1}}, "held: STARVED"),
        ({"longest_silence_s": 5.0}, "reported nothing for 5.0 s"),
    ],
)
def test_a_disturbed_robot_is_a_problem_and_a_stall_of_the_machine_is_none(
    change: dict[str, object], what: str
) -> None:
    assert undisturbed([GOOD]) == []
    (problem,) = undisturbed([GOOD, replace(GOOD, robot="arm_2", **change)])
    assert "arm_2" in problem and what in problem
