"""A worker's end is noticed, costs nobody else anything, and no worker outlives its node."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.scripted import TEST_FOLDER, scripted_bundle
from support.waits import TIMEOUT_S, wait_for
from support.worker_robot import WorkerRobot, gone, processes_of_session

from vla_policy_node.worker.api import PrepareError
from vla_policy_node.worker.environment import PACKAGE_ROOT, worker_environment


@pytest.mark.parametrize(
    ("behaviour", "how"), [({"crash_at_call": 0}, "SIGSEGV"), ({"exit_at_call": 0}, "exit code 7"), ({}, "SIGKILL")]
)
def test_a_worker_that_dies_is_reported_with_its_cause_and_the_other_goes_on(
    tmp_path: Path, behaviour: dict[str, Any], how: str
) -> None:
    scripted_bundle(tmp_path / "good")
    scripted_bundle(tmp_path / "bad", **behaviour)
    with WorkerRobot(spare=False) as robot:
        good, bad = robot.pool.prepare(tmp_path / "good"), robot.pool.prepare(tmp_path / "bad")
        if behaviour:
            robot.observe()
            robot.request(bad)
        else:
            bad.kill()
        event = robot.wait_for(lambda e: e.kind == "LOST")
        assert event.generation is bad
        assert event.code == "WORKER_DIED"
        assert how in event.message
        assert not bad.alive
        robot.assert_works(good)
        # its place is free again, also before it is released
        again = robot.pool.prepare(tmp_path / "good")
        robot.assert_works(again)
        robot.pool.release(bad)
        assert robot.pool.generations() == [good, again]


@pytest.mark.parametrize("how", ["hang_at_call", "spin_at_call", "stopped"])
def test_a_worker_that_owes_a_chunk_too_long_is_killed(tmp_path: Path, how: str) -> None:
    scripted_bundle(tmp_path / "good")
    scripted_bundle(tmp_path / "bad", **({} if how == "stopped" else {how: 1}))
    with WorkerRobot(spare=False, inference_timeout_s=3.0) as robot:
        good, bad = robot.pool.prepare(tmp_path / "good"), robot.pool.prepare(tmp_path / "bad")
        robot.assert_works(bad)
        if how == "stopped":
            os.kill(bad.pid, signal.SIGSTOP)
        robot.observe()
        robot.request(bad)
        event = robot.wait_for(lambda e: e.kind == "LOST")
        assert (event.generation, event.code) == (bad, "WORKER_HUNG")
        assert gone(bad.pid)
        robot.assert_works(good)


def test_a_slow_worker_that_is_asked_again_and_again_is_not_taken_for_hung(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", sleep_s=0.25)
    with WorkerRobot(spare=False, inference_timeout_s=3.0) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        for _ in range(75):  # 3.75 s of requests, faster than it can answer
            robot.observe()
            last = robot.request(generation)
            time.sleep(0.05)
        assert robot.answer(generation, last) is not None
        assert generation.alive


def test_an_idle_worker_is_not_taken_for_hung(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a")
    with WorkerRobot(spare=False, inference_timeout_s=2.0) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        robot.assert_works(generation)
        time.sleep(2.5)
        robot.assert_works(generation)


def test_what_a_policy_started_ends_with_its_worker(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", child_process=True)
    scripted_bundle(tmp_path / "b", child_process=True, golden_error=1.0)
    with WorkerRobot(spare=False) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        child = int(robot.logged("child ").split()[1])
        assert not gone(child, 0.05)
        generation.kill()
        assert gone(child)
        robot.events.clear()
        with pytest.raises(PrepareError):
            robot.pool.prepare(tmp_path / "b")
        assert gone(int(robot.logged("child ").split()[1]))


def test_the_spare_is_used_and_replaced(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a")
    with WorkerRobot(spare=True) as robot:
        spare = robot.spare_ready()
        generation = robot.pool.prepare(tmp_path / "a")
        assert generation.pid == spare
        assert generation.timings.spare_used
        assert robot.spare_ready(not_pid=spare) == robot.spare_pid


def test_the_next_spare_waits_until_the_swap_is_over(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a")
    with WorkerRobot(spare=True, spare_delay_s=3600.0) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        time.sleep(0.3)
        assert robot.spare_pid is None
        robot.pool.ensure_spare()
        robot.spare_ready(not_pid=generation.pid)


def test_a_spare_that_dies_is_replaced(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a")
    with WorkerRobot(spare=True) as robot:
        spare = robot.spare_ready()
        os.kill(spare, signal.SIGKILL)
        second = robot.spare_ready(not_pid=spare)
        assert robot.pool.prepare(tmp_path / "a").pid == second


def test_modules_that_are_not_there_cost_only_a_line_in_the_log() -> None:
    with WorkerRobot(imports=("no_such_module_here", "json")) as robot:
        robot.spare_ready()
        robot.logged("no_such_module_here")


def test_a_spare_does_the_slow_first_time_work_of_the_type_that_ran_last(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a")
    robot = WorkerRobot(device="somewhere")
    robot.pool.start()  # nothing ran yet: no type to prepare for
    with contextlib.closing(robot.pool):
        spare = robot.spare_ready()
        robot.pool.prepare(tmp_path / "a")
        second = robot.spare_ready(not_pid=spare)
        event = robot.wait_for(lambda e: e.kind == "LOG" and e.message == "preloaded for somewhere")
        assert event.pid == second


def test_an_interpreter_that_is_not_there_is_said(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a")
    with (
        WorkerRobot(worker_python=str(tmp_path / "python"), spare=False) as robot,
        pytest.raises(PrepareError) as caught,
    ):
        robot.pool.prepare(tmp_path / "a")
    assert caught.value.code == "WORKER_START_FAILED"
    assert str(tmp_path / "python") in str(caught.value)


def test_an_interpreter_that_cannot_run_a_worker_is_said(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True, timeout=60)
    with (
        WorkerRobot(worker_python=str(tmp_path / "venv/bin/python"), spare=False) as robot,
        pytest.raises(PrepareError) as caught,
    ):
        robot.pool.prepare(tmp_path / "a")
    assert caught.value.code == "WORKER_DIED"
    assert "No module named 'numpy'" in str(caught.value)


def test_another_interpreter_needs_numpy_and_nothing_of_the_node(tmp_path: Path) -> None:
    """No vla_checkpoint, safetensors, rfc8785 or semver there: the node has parsed everything."""
    scripted_bundle(tmp_path / "a")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True, timeout=60)
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    site = Path(np.__file__).resolve().parents[1]
    for name in ("numpy", "numpy.libs"):
        if (site / name).exists():
            (libraries / name).symlink_to(site / name)
    python = tmp_path / "venv/bin/python"
    with WorkerRobot(worker_python=str(python), paths=(str(libraries), TEST_FOLDER), spare=False) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        assert Path(f"/proc/{generation.pid}/cmdline").read_text().split("\0")[0] == str(python)
        robot.assert_works(generation)


NODE = """
import os, sys, threading, time
from pathlib import Path
from support.worker_robot import WorkerRobot
mode, bundles = sys.argv[1], Path(sys.argv[2])
robot = WorkerRobot(inference_timeout_s=3600.0)
robot.pool.start("scripted")
a, b = robot.pool.prepare(bundles / "a"), robot.pool.prepare(bundles / "b")
robot.pool.ensure_spare()
while robot.spare_pid is None:
    time.sleep(0.01)
robot.observe()
robot.request(b)  # b spins with the interpreter's lock held
time.sleep(0.3)
print(a.pid, b.pid, robot.spare_pid, flush=True)
if mode == "exit":
    sys.exit(0)
time.sleep(3600)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "exit"])
def test_no_worker_outlives_its_node_however_it_ends(tmp_path: Path, how: str) -> None:
    scripted_bundle(tmp_path / "a")
    scripted_bundle(tmp_path / "b", spin_at_call=0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE_ROOT), TEST_FOLDER])}
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, how, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert node.stdout is not None
        workers = [int(word) for word in node.stdout.readline().split() if word != "None"]
        assert len(workers) == 3
        if how != "exit":
            node.send_signal(getattr(signal, how))
        node.wait(TIMEOUT_S)
        for pid in workers:
            assert gone(pid), (how, pid)
            assert not processes_of_session(pid)
    finally:
        node.kill()
        node.wait(10)
        node.stdout.close()


def test_a_generation_lives_on_when_the_thread_that_prepared_it_ends(tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG watches the thread that forked, not the process."""
    scripted_bundle(tmp_path / "a")
    with WorkerRobot(spare=False) as robot:
        found = []
        thread = threading.Thread(target=lambda: found.append(robot.pool.prepare(tmp_path / "a")))
        thread.start()
        thread.join(30)
        time.sleep(0.2)
        robot.assert_works(found[0])


def test_a_listener_that_raises_does_not_end_the_workers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scripted_bundle(tmp_path / "a")
    robot = WorkerRobot(spare=False)
    robot.pool._on_event = lambda event: 1 / 0
    with robot:
        a, b = robot.pool.prepare(tmp_path / "a"), robot.pool.prepare(tmp_path / "a")
        b.kill()
        assert gone(b.pid)
        robot.assert_works(a)
        said: list[str] = []
        wait_for(lambda: said.append(capfd.readouterr().err) or "ZeroDivisionError" in "".join(said), "the trace")


def test_a_worker_has_no_variable_of_ros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ROS_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    scripted_bundle(tmp_path / "a")
    with WorkerRobot(spare=False, threads=3) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        raw = Path(f"/proc/{generation.pid}/environ").read_text()
    variables = dict(item.partition("=")[::2] for item in raw.split("\0") if item)
    for name in variables:
        assert not name.startswith(("AMENT_", "ROS_", "RMW_", "COLCON_", "FASTRTPS_", "FASTDDS_", "CYCLONEDDS_"))
    assert "/opt/ros" not in raw
    assert variables["PYTHONPATH"].split(":") == [str(PACKAGE_ROOT), TEST_FOLDER]
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["HOME_OF_TEST"] == "kept"


ROS_ENVIRONMENT = {
    "AMENT_PREFIX_PATH": "/home/robot/ws/install/vla_ota:/opt/ros/jazzy",
    "COLCON_PREFIX_PATH": "/home/robot/ws/install",
    "ROS_DISTRO": "jazzy",
    "ROS_DOMAIN_ID": "42",
    "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
    "FASTRTPS_DEFAULT_PROFILES_FILE": "/home/robot/profile.xml",
    "CYCLONEDDS_URI": "file:///x",
    "HOME_OF_TEST": "kept",
}


def test_only_the_entries_of_ros_leave_the_path_lists() -> None:
    base = {
        **ROS_ENVIRONMENT,
        "PATH": "/opt/ros/jazzy/bin:/usr/bin:/home/robot/ws/install/vla_ota/bin",
        "LD_LIBRARY_PATH": "/opt/ros/jazzy/lib:/usr/local/cuda/lib64:/home/robot/venv/site-packages/ros_jazzy_rclpy.libs",
        "PYTHONPATH": "/opt/ros/jazzy/lib/python3.12/site-packages:/home/robot/own",
        "PYTHONHOME": "/somewhere",
    }
    result = worker_environment(base)
    assert result["PATH"] == "/usr/bin"
    assert result["LD_LIBRARY_PATH"] == "/usr/local/cuda/lib64"
    assert result["PYTHONPATH"] == str(PACKAGE_ROOT)
    assert "PYTHONHOME" not in result
    assert "LD_LIBRARY_PATH" not in worker_environment({**base, "LD_LIBRARY_PATH": "/opt/ros/jazzy/lib"})


def test_a_pool_that_is_closed_as_it_starts_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    robot = WorkerRobot()
    robot.pool.close()
    robot.pool.start()
    for thread in threading.enumerate():
        if thread.name == "worker-watcher":
            thread.join(TIMEOUT_S)
    assert not raised and robot.spare_pid is None


def test_the_node_process_never_imports_torch() -> None:
    code = "import sys, vla_policy_node.worker.pool; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=PACKAGE_ROOT)
