# SPDX-License-Identifier: Apache-2.0
"""The control process as a child: it starts, commands on time, survives nonsense, and ends with its parent however that goes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.control_rig import RATE, Worker, contract, contract_text
from support.control_robot import HORIZON, Robot
from support.refusals import refused
from support.waits import TIMEOUT_S, wait_for

from vla_policy_node.control.realtime import parse_cpus
from vla_policy_node.errors import ControlError
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.channel import Channel
from vla_policy_node.ipc.layouts import control_status_layout, observation_layout, operator_layout


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    robots: list[Robot] = []

    def build(**changes: Any) -> Robot:
        robots.append(Robot(tmp_path, **changes))
        return robots[-1]

    yield build
    for robot in robots:
        robot.close()


def test_it_says_what_it_got_commands_and_swaps_without_a_starved_tick(make: Any) -> None:
    robot = make()
    robot.start()
    started = robot.events[0]
    assert started["type"] == "STARTED" and started["pid"] == robot.client.pid and started["fifo"] in (0, 20)
    robot.add(1, (0.2, 0.0))
    robot.client.activate(1, "NOW", "first", 5.0)
    robot.client.enable(True)
    robot.client.resume()
    robot.wait(lambda: robot.mode == "RUNNING")
    robot.add(2, (0.2, 0.05))
    robot.client.begin_span("swap")
    time.sleep(0.3)
    robot.client.activate(2, "CHUNK", "swap", 10.0)
    swapped = robot.wait(lambda: [e for e in robot.events if e.get("swap_id") == "swap"])[0]
    assert swapped["type"] == "SWAPPED" and (swapped["previous"], swapped["generation"]) == (1, 2) and swapped["acted"]
    assert swapped["starved"] == 0 and sum(swapped["histogram"]) == swapped["ticks"] >= 10
    assert 0.0 < swapped["latency_s"] < 10.0
    span = robot.wait(lambda: [e for e in robot.events if e.get("span_id") == "swap"])[0]
    assert span["ticks"] >= swapped["ticks"] + 45
    status = robot.client.status()
    assert status.generation == 2 and status.age_s < 5.0 and status.starved == span["starved"] == 0
    _, commands = robot.commands()
    assert np.abs(np.diff(commands, axis=0)).max() <= RATE / 50 + 1e-9


def test_parent_killed_child_ends_and_publishes_nothing_more(tmp_path: Path) -> None:
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from support.control_robot import Robot
robot = Robot(Path({str(tmp_path)!r}))
robot.run()
print(robot.client.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    handle = os.pidfd_open(pid) if Path(f"/proc/{pid}").exists() else None
    if handle is not None:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        assert poll.poll(40_000), "the control process outlives its parent"
        os.close(handle)
    size = (tmp_path / "commands").stat().st_size
    assert size > 0
    time.sleep(0.2)
    assert (tmp_path / "commands").stat().st_size == size


def test_close_ends_it_and_nothing_is_published_after(make: Any) -> None:
    robot = make()
    robot.run()
    robot.client.close()
    stamps, _ = robot.commands()
    assert not robot.client.alive
    assert robot.event("EXITED") == {"type": "EXITED", "returncode": 0, "expected": True}
    assert stamps[-1] <= time.monotonic_ns()
    with refused("CONTROL_LOST"):
        robot.client.resume()


def test_it_is_reported_when_it_is_killed(make: Any) -> None:
    robot = make()
    robot.run()
    os.kill(robot.client.pid, signal.SIGKILL)
    assert robot.event("EXITED")["returncode"] == -signal.SIGKILL
    assert not robot.client.alive


def test_a_silent_node_process_stops_the_robot(make: Any) -> None:
    """The observation record is no longer renewed: its permission to move and its observation both run out."""
    robot = make(motion=True, auto=True)
    robot.run()
    robot.motion_s = 0.5
    robot._over.set()
    robot._thread.join()
    robot.write()
    robot.wait(lambda: robot.mode == "MOTION_DISABLED")
    size = robot.path.stat().st_size
    time.sleep(0.2)
    assert robot.path.stat().st_size == size


def test_nonsense_on_the_channel_is_answered_and_does_not_stop_a_tick(make: Any) -> None:
    robot = make()
    robot.run()
    channel = robot.client._channel
    for data in (
        b"{",
        b"\xff\xfe\x00",
        b"[1,2]",
        b"null",
        b'"x"',
        b'{"type":7}',
        b"[" * 5000,
        b'{"type":"activate"}',
        b"1e999",
    ):
        channel.socket.send(data)
        time.sleep(0.01)
    read, write = os.pipe()
    channel.send({"type": "add_generation", "handle": {"id": 5}}, [read, write])
    os.close(read)
    os.close(write)
    robot.wait(lambda: sum(e["type"] == "REFUSED" for e in robot.events) == 10)
    tick = robot.client.status().tick
    robot.wait(lambda: robot.client.status().tick > tick + 5)
    assert robot.mode == "RUNNING" and robot.client.status().starved == 0


def test_a_handle_whose_memory_is_something_else_is_refused(make: Any) -> None:
    robot = make()
    robot.run()
    worker, other = Worker(3), Worker(4, horizon=30)
    fields, _ = worker.handle.to_message()
    message = {"type": "add_generation", "handle": fields, "latency_s": 0.0, "limits": None}
    robot.client._channel.send(message, [other.chunks.fd, other.requests.fd, other.eventfd])
    assert robot.event("REFUSED")["error_code"] == "ARENA_MISMATCH"
    worker.close()
    other.close()
    assert robot.mode == "RUNNING"


def test_a_worker_that_never_reads_its_wake_ups_does_not_block_a_tick(make: Any) -> None:
    robot = make()
    robot.run()
    worker, _ = robot.workers[1]
    robot.workers[1] = (worker, None)
    robot.workers.pop(1)  # nobody reads the eventfd from here on
    os.eventfd_write(worker.eventfd, 2**64 - 2 - 1)  # one more would block
    robot.wait(lambda: robot.client.status().hold_reason == "STARVED")
    tick = robot.client.status().tick
    robot.wait(lambda: robot.client.status().tick > tick + HORIZON + 10)  # asks again meanwhile
    robot.workers[1] = (worker, (0.0, 0.0))
    robot.wait(lambda: robot.mode == "RUNNING")


def test_a_node_that_does_not_read_events_does_not_block_a_tick(tmp_path: Path) -> None:
    parsed = contract()
    observation = Arena.create(observation_layout(parsed.features, 2))
    status, operator = Arena.create(control_status_layout(2), 16), Arena.create(operator_layout(2), 4)
    ours, theirs = Channel.pair()
    with subprocess.Popen(
        [sys.executable, "-m", "vla_policy_node.control.process", str(theirs.fileno())], pass_fds=[theirs.fileno()]
    ) as child:
        theirs.close()
        ours.send(
            {
                "type": "configure",
                "contract": contract_text(),
                "contract_path": "rig.yaml",
                "fifo_priority": None,
                "cpus": "",
                "sink": {"kind": "record", "path": str(tmp_path / "commands")},
                "status_slots": 16,
                "operator_slots": 4,
                "observation": {"layout": observation.layout.to_json(), "slots": observation.slots},
            },
            [observation.fd, status.fd, operator.fd],
        )
        assert ours.receive(TIMEOUT_S) is not None
        sent = 0
        end = time.monotonic() + 3.0
        while time.monotonic() < end and sent < 3000:
            ours.send({"type": "nonsense", "filler": "x" * 200})
            sent += 1
        before = status.newest
        wait_for(lambda: status.newest > before + 10, "more ticks")
        ours.close()
        assert child.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"contract": "robot_type: 1"}, "CONTRACT_"),
        ({"sink": {"kind": "telepathy"}}, "SINK_UNKNOWN"),
        ({"sink": {"kind": "record", "path": "/nowhere/at/all"}}, "SINK_FAILED"),
        ({"sink": {"kind": "record"}}, "CONTROL_CONFIGURATION"),
        ({"observation": {"layout": [["x", "int64", []]], "slots": 2}}, "ARENA_MISMATCH"),
    ],
)
def test_a_start_that_fails_says_why(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    robot = Robot(tmp_path)
    send = robot.client._send
    robot.client._send = lambda message, fds=(): send({**message, **change}, fds)  # type: ignore[method-assign]
    with pytest.raises(ControlError) as e:
        robot.client.start(20.0)
    assert e.value.code.startswith(code) and e.value.message
    assert not robot.client.alive
    robot.observation.close()


def test_an_interpreter_that_does_not_exist_is_a_coded_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robot = Robot(tmp_path)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with refused("CONTROL_START_FAILED"):
        robot.client.start(5.0)
    robot.observation.close()


def test_the_control_process_imports_neither_torch_nor_rclpy() -> None:
    code = (
        "import sys; import vla_policy_node.control.process; print([m for m in ('torch', 'rclpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_it_runs_on_the_processors_that_are_named_and_says_if_it_may_not(make: Any) -> None:
    mine = max(os.sched_getaffinity(0))
    for cpus, pinned, allowed in ((f"{mine}", True, {mine}), ("1000-1001", False, os.sched_getaffinity(0))):
        started = make(cpus=cpus).start()
        assert started["pinned"] is pinned
        assert os.sched_getaffinity(started["pid"]) == allowed


@pytest.mark.parametrize("cpus", ["2-three", "5-2", "0-", "-3", "0-9999999999", "4096", "1,,2", ",", "1 2", "\u0663"])
def test_a_list_of_processors_that_names_none_or_too_many_is_refused_with_its_text(make: Any, cpus: str) -> None:
    with refused("CONTROL_CONFIGURATION") as caught:
        make(cpus=cpus).start()
    assert f"control_cpus {cpus!r}" in str(caught.value)


def test_a_list_of_processors_may_have_ranges_and_spaces() -> None:
    assert parse_cpus(" 2, 6-8,4095") == {2, 6, 7, 8, 4095}
    assert parse_cpus("") == parse_cpus(" ") == set()


def test_a_tick_takes_no_new_page_of_memory(make: Any) -> None:
    """Pages that a tick touches for the first time are the kernel's to find, and that takes as long as it takes."""
    robot = make()
    robot.run(0.1)

    def counts() -> tuple[int, int]:
        fields = Path(f"/proc/{robot.client.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[7]), robot.client.status().ticks

    before, first = counts()
    robot.wait(lambda: counts()[1] >= first + 300)
    after, last = counts()
    assert after - before < (last - first) / 10, (before, after, first, last)


def test_the_first_swap_imports_nothing_on_a_tick(
    make: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An import takes milliseconds, and numpy has functions that import on their first call."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # each import is a line of the control process's output
    robot = make()
    robot.run(0.1)
    assert "import time:" in capfd.readouterr().err
    robot.add(2, 0.11)
    robot.client.activate(2, "CHUNK", "second", 60.0)
    swapped = robot.wait(lambda: [e for e in robot.events if e["type"] == "SWAPPED" and e["swap_id"] == "second"])
    assert swapped[0]["acted"] and swapped[0]["typical_step"] >= 0.0
    assert capfd.readouterr().err == ""
