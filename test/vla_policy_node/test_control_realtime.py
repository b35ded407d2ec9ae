# SPDX-License-Identifier: Apache-2.0
"""No ordinary process pushes aside a thread of the control process that holds what the loop waits for (where FIFO is allowed)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from std_msgs.msg import Float64MultiArray
from support.control_rig import contract_text
from support.control_robot import MAX_AGE_MS
from support.control_ros import TOPICS, Peer, robot_for
from support.waits import wait_for

from vla_policy_node.control.realtime import take_fifo

RESET_ON_FORK = getattr(os, "SCHED_RESET_ON_FORK", 0)


def in_a_process(script: str) -> Any:
    """Run a script that prints JSON: what it does to its own scheduling must not befall the tests."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100.0, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def fifo_allowed() -> bool:
    script = "import json; from vla_policy_node.control.realtime import take_fifo; print(json.dumps(take_fifo(2)))"
    return bool(in_a_process(script) == 2)


PUSHED_ASIDE = """
import json, os, subprocess, sys, threading, time
from vla_policy_node.control.realtime import take_fifo_for_process

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
hog = subprocess.Popen([sys.executable, "-c", "print(flush=True)\\nwhile True: pass"], stdout=subprocess.PIPE)
hog.stdout.readline()
hog_clock = (~hog.pid << 3) | 2  # its processor time, by the clock that Linux keeps of every process

def hold_the_lock():
    taken = 0
    for _ in range(10):
        begun, work = time.clock_gettime_ns(hog_clock), time.thread_time_ns()
        while time.thread_time_ns() - work < 15_000_000:
            pow(3, 20_000)
        taken += time.clock_gettime_ns(hog_clock) - begun
        time.sleep(0.02)
    return taken

def beside(results):
    for go, done in gates:
        go.wait()
        results.append(hold_the_lock())
        done.set()

gates = [(threading.Event(), threading.Event()) for _ in range(2)]
results = []
helper = threading.Thread(target=beside, args=(results,))
helper.start()
gates[0][0].set()
gates[0][1].wait()
fifo = take_fifo_for_process(2)
gates[1][0].set()
gates[1][1].wait()
helper.join()
hog.kill()
hog.wait()
print(json.dumps({"fifo": fifo, "ordinary": results[0], "lifted": results[1]}))
"""


def test_a_busy_process_gets_nothing_of_the_processor_while_a_helper_works(fifo_allowed: bool) -> None:
    """A helper that was there before: at first it shares the processor with a busy process, then no longer."""
    found = in_a_process(PUSHED_ASIDE)
    assert found["fifo"] == (2 if fifo_allowed else 0)
    assert found["ordinary"] > 0, "the busy process was not busy"
    # Moments are the kernel's: it keeps a share of each second from all of SCHED_FIFO, and stops a process between two steps.
    assert (found["lifted"] < 0.1 * found["ordinary"]) == fifo_allowed, found


THREADS = """
import json, os, threading
from vla_policy_node.control.realtime import take_fifo_for_process

def told():
    policy = os.sched_getscheduler(0) & ~getattr(os, "SCHED_RESET_ON_FORK", 0)
    return [policy == os.SCHED_FIFO, os.sched_getparam(0).sched_priority]

def helper():
    go.wait()
    later = threading.Thread(target=lambda: found.append(told()))
    later.start()
    later.join()
    found.append(told())

found, go = [], threading.Event()
thread = threading.Thread(target=helper)
thread.start()
fifo = take_fifo_for_process({priority})
go.set()
thread.join()
print(json.dumps([fifo, told(), *found]))
"""


@pytest.mark.parametrize(("priority", "below"), [(7, 6), (1, 1)])
def test_the_caller_is_above_all_others_and_what_they_start_later(
    fifo_allowed: bool, priority: int, below: int
) -> None:
    fifo, caller, started_by_helper, helper = in_a_process(THREADS.replace("{priority}", str(priority)))
    if fifo_allowed:
        assert (fifo, caller) == (priority, [True, priority])
        assert started_by_helper == helper == [True, below]
    else:
        assert (fifo, caller) == (0, [False, 0])
        assert started_by_helper == helper == [False, 0]


def test_what_is_not_allowed_changes_nothing() -> None:
    fifo, caller, started_by_helper, helper = in_a_process(THREADS.replace("{priority}", "1000"))
    assert fifo == 0 and caller == started_by_helper == helper == [False, 0]


def threads_of(pid: int) -> dict[int, tuple[int, int]]:
    """Return thread → scheduling policy and priority of a process."""
    found = {}
    for entry in Path(f"/proc/{pid}/task").iterdir():
        thread = int(entry.name)
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            policy = os.sched_getscheduler(thread) & ~RESET_ON_FORK
            found[thread] = (policy, os.sched_getparam(thread).sched_priority)
    return found


def test_every_thread_of_a_control_process_on_ros_runs_just_below_its_loop(tmp_path: Path, ros_domain: int) -> None:
    """DDS's threads among them, also once it has met somebody; the one thread above is the loop's."""
    robot, peer = (
        robot_for(tmp_path, ros_domain, contract_text(auto=True, max_age_ms=MAX_AGE_MS), topics=TOPICS),
        Peer(ros_domain),
    )
    try:
        robot.run()
        got: list[Any] = []
        peer.node.create_subscription(Float64MultiArray, "/arm/commands", got.append, 1)
        peer.wait(lambda: got)
        wait_for(lambda: len(threads_of(robot.client.pid)) > 3, "the threads of DDS")
        threads, fifo = threads_of(robot.client.pid), robot.events[0]["fifo"]
    finally:
        robot.close()
        peer.close()
    loop = threads.pop(robot.client.pid)
    assert len(threads) >= 3, threads
    if fifo:
        assert loop == (os.SCHED_FIFO, fifo)
        assert set(threads.values()) == {(os.SCHED_FIFO, fifo - 1)}
    else:
        assert loop == (os.SCHED_OTHER, 0) and set(threads.values()) == {(os.SCHED_OTHER, 0)}


def test_where_one_thread_is_asked_for_one_thread_is_lifted(fifo_allowed: bool) -> None:
    """A process that serves a robot's loop lends it a thread (benchmarks do); everything else in it stays ordinary."""
    script = THREADS.replace("take_fifo_for_process", "take_fifo").replace("{priority}", "7")
    fifo, caller, started_by_helper, helper = in_a_process(script)
    assert (fifo, caller) == ((7, [True, 7]) if fifo_allowed else (0, [False, 0]))
    assert started_by_helper == helper == [False, 0]
    assert take_fifo(1000) == 0
