# SPDX-License-Identifier: Apache-2.0
"""A node's process from its first line of Python to its last: quiet ends, and refusals of one line that say what to do."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rclpy.action import ActionClient
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from sensor_msgs.msg import JointState
from support.ros import NodeProcess, RosHarness
from support.waits import wait_for
from vla_ota.action import RunPolicy

from vla_ros import qos
from vla_ros.action_server import DestroyableActionServer
from vla_ros.runtime import process_arguments, run
from vla_ros.start import REFUSED

NODES = ("policy_node", "ota_manager", "recorder", "sim_robot")


def executable(name: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start an executable as its console script does."""
    code = f"import sys; sys.argv[0] = {name!r}; from vla_ros.start import {name}; {name}()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for its end; return exit status and output."""
    try:
        output, _ = process.communicate(timeout=100)
    finally:
        process.kill()
    return process.returncode, output


def instead_of(folder: Path, module: str, code: str) -> dict[str, str]:
    """Return an environment in which a module is this code."""
    (folder / f"{module}.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])}


@pytest.mark.parametrize("name", NODES)
def test_help_lists_every_parameter_and_starts_nothing(name: str) -> None:
    status, text = outcome(executable(name, "--help"))
    assert status == 0 and text.startswith(f"usage: {name} ")
    parameters = (Path(__file__).resolve().parents[2] / "config" / "vla_ota.yaml").read_text()
    section = parameters.partition(f"/**/{name}:")[2].partition("\n/**/")[0]
    listed = re.findall(r"^    (?:# )?(\w+): \S", section, re.MULTILINE)
    assert listed and not [parameter for parameter in listed if f"\n  {parameter} (" not in text]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("policy_node", ["--contract=x"], "ARGUMENTS_INVALID: --contract=x: give parameters as --ros-args -p"),
        ("sim_robot", ["--ros-args", "-p", "nonsense"], "ARGUMENTS_INVALID"),
        *((name, ["--ros-args", "-r", "__ns:=/arm_1", "-p", "none:=1"], "PARAMETER_INVALID: none") for name in NODES),
    ],
)
def test_an_argument_that_means_nothing_is_refused_in_one_line_for_good(
    ros_domain: int, name: str, arguments: list[str], words: str
) -> None:
    status, text = outcome(executable(name, *arguments))
    fatal = [line for line in text.splitlines() if "[FATAL]" in line]
    assert status == REFUSED and len(fatal) == 1 and words in fatal[0] and "Traceback" not in text
    assert ("arm_1." if "/arm_1" in str(arguments) else "") + f"{name}]" in fatal[0]


@pytest.mark.parametrize("name", ["policy_node", "ota_manager", "doctor", "vla_checkpoint"])
def test_a_missing_python_module_is_named_with_the_pip_line_that_brings_it(name: str, tmp_path: Path) -> None:
    gone = "raise ModuleNotFoundError(\"No module named 'rfc8785'\", name='rfc8785')"
    status, text = outcome(executable(name, **instead_of(tmp_path, "rfc8785", gone)))
    assert (status, len(text.splitlines())) == (REFUSED, 1)
    assert f"[{name}]: MODULE_MISSING: No module named 'rfc8785' ({sys.executable}): pip install mcap rfc8785 " in text


def test_a_fast_dds_profile_that_is_not_there_is_refused(ros_domain: int) -> None:
    status, text = outcome(executable("sim_robot", FASTRTPS_DEFAULT_PROFILES_FILE="/nowhere/fastdds.xml"))
    assert (status, len(text.splitlines())) == (REFUSED, 1)
    assert "ARGUMENTS_INVALID: FASTRTPS_DEFAULT_PROFILES_FILE=/nowhere/fastdds.xml" in text


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("policy_node", signal.SIGINT),
        ("policy_node", signal.SIGTERM),
        ("ota_manager", signal.SIGINT),
        ("sim_robot", signal.SIGTERM),
    ],
)
def test_a_signal_during_the_imports_ends_a_node_quietly_with_status_0(name: str, number: int, tmp_path: Path) -> None:
    slow = f"import pathlib, time; pathlib.Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(60)"
    process = executable(name, **instead_of(tmp_path, "numpy", slow))
    wait_for((tmp_path / "begun").exists, "the import")
    process.send_signal(number)
    process.send_signal(number)
    assert outcome(process) == (0, "")


def test_ctrl_c_twice_ends_a_running_node_quietly_with_status_0(ros_domain: int, tmp_path: Path) -> None:
    with NodeProcess("vla_sim.ros.sim_robot", ros_domain, tmp_path) as sim, RosHarness(ros_domain) as ros:
        ros.subscribe(JointState, "joint_states", qos.SENSORS).wait()
        sim.process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        assert sim.stop(signal.SIGINT) == 0
        assert sim.log == ""


_CALLBACKS = 12


class Busy(Node):
    """More callbacks than threads, and slow ones: many wait for a thread when the end comes."""

    def __init__(self) -> None:
        super().__init__("busy")
        self.ending = threading.Event()
        for _ in range(_CALLBACKS):
            self.create_timer(0.001, self._slow, callback_group=MutuallyExclusiveCallbackGroup())
        threading.Thread(target=self._interrupt, daemon=True).start()

    def _slow(self) -> None:
        self.ending.wait(60.0)
        time.sleep(0.05)

    def _interrupt(self) -> None:
        wait_for(lambda: self.executor is not None and self.executor._executor._work_queue.qsize() >= _CALLBACKS // 2)
        os.kill(os.getpid(), signal.SIGINT)

    def close(self) -> None:
        self.ending.set()


def test_callbacks_that_still_wait_for_a_thread_at_the_end_are_dropped_quietly(
    ros_domain: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_ros.runtime._LAST_WORK_S", 60.0)  # what runs, ends soon; what waits would take longer
    gc.collect()
    capfd.readouterr()  # what other tests have left is theirs
    before = {*threading.enumerate()}
    assert run(Busy, [], threads=2) == 0
    wait_for(lambda: not {*threading.enumerate()} - before, "the end of every thread of it")
    gc.collect()
    assert capfd.readouterr() == ("", "")


class Loses(Node):
    """Loses an action server just before the executor does ``step`` with it, as if another thread had destroyed it there."""

    def __init__(self, step: str) -> None:
        super().__init__("loses")

        class Server(DestroyableActionServer):
            pass

        def interrupted(server: Server, *arguments: object) -> object:
            if not self.ticks_left:
                self.ticks_left = 10
                server.destroy()
            return getattr(super(Server, server), step)(*arguments)

        setattr(Server, step, interrupted)
        self.ticks_left = 0
        self._server = Server(self, RunPolicy, "run", lambda goal: RunPolicy.Result())
        self._client = ActionClient(self, RunPolicy, "run")
        self.create_timer(0.02, self._tick, callback_group=MutuallyExclusiveCallbackGroup())

    def _tick(self) -> None:
        if self.ticks_left:
            self.ticks_left -= 1
            if self.ticks_left == 1:  # by now the executor has seen what came of it
                os.kill(os.getpid(), signal.SIGINT)
        elif self._client.server_is_ready():
            self._client.send_goal_async(RunPolicy.Goal())


@pytest.mark.parametrize("step", ["__enter__", "take_data", "execute"])
def test_a_node_outlives_an_action_server_that_it_destroys_at_any_moment(ros_domain: int, step: str) -> None:
    assert run(lambda: Loses(step), [], threads=4) == 0


def test_a_child_gets_the_ros_arguments_of_the_process_and_none_of_the_node() -> None:
    given = "node contract:=x --ros-args -r __ns:=/a -e /enclave -p a:=1 --disable-rosout-logs --params-file f --log-level warn"
    of_the_process = ["--ros-args", "-e", "/enclave", "--disable-rosout-logs", "--log-level", "warn"]
    assert process_arguments([*given.split(), "--", "--enclave", "/other"]) == of_the_process
    assert process_arguments(["node", "--ros-args", "-r", "__node:=x"]) == []
