# SPDX-License-Identifier: Apache-2.0
"""LeRobot's own asynchronous inference, asked to replace its policy: the measured program of the peer in ``swap_lerobot.py``.

It runs in LeRobot's interpreter. The server is LeRobot's program (``lerobot.async_inference.policy_server``) as it is, in a
process of its own; the client is LeRobot's ``RobotClient``, in this one, with a robot of LeRobot's interface that only takes
actions. Its queue, its weighted averages, its chunk threshold of one half and its calls to the server are LeRobot's, in LeRobot's
places: an observation is sent inside the control loop, which waits until the server has it. Three things differ, in its favour:

* the loop sleeps to absolute deadlines, and under SCHED_FIFO where that is allowed, as the other peers' loops do. LeRobot's
  sleeps the rest of a period after its work, so that it drifts;
* the garbage of LeRobot's imports is collected before the loop begins; else a tick of its first second would wait for that.
  What is collected later is as it comes, in both processes;
* a swap is ``RobotClient.start()`` from beside the loop with the other checkpoint's path, but without the handshake ``Ready``
  before the instructions. LeRobot has no other way to new instructions than a new client. A second handshake would replace the
  queue on which ``GetActions`` waits, for up to two seconds.

Client and server talk in pickles, by LeRobot's code, on 127.0.0.1 alone. Nothing here reads or makes one.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.async_inference.configs import RobotClientConfig
from lerobot.async_inference.robot_client import RobotClient
from lerobot.robots.config import RobotConfig
from lerobot.robots.robot import Robot
from lerobot.transport import services_pb2

from benchmarks.processes import answer, say
from benchmarks.swap_lerobot_make import CAMERA_PX, CHUNK, JOINTS, MARKS
from vla_policy_node.control.counters import Counters
from vla_policy_node.control.realtime import take_fifo
from vla_policy_node.control.schedule import Schedule

_NAMES = [f"j{i}.pos" for i in range(JOINTS)]
_SWING_RAD, _SWING_HZ = 3.0, 0.5
_TIMEOUT_S = 60.0
_SETTLE_S = 2.0


@RobotConfig.register_subclass("bench_arm")
@dataclass(kw_only=True)
class BenchArmConfig(RobotConfig):  # type: ignore[misc]
    """Nothing to set."""


class BenchArm(Robot):  # type: ignore[misc]
    """Takes actions and notes when their sign changed: whose they are.

    Its joints swing by themselves, because LeRobot's server leaves out an observation whose joints are within 1 of the last.
    """

    config_class = BenchArmConfig
    name = "bench_arm"
    is_connected = is_calibrated = True

    def __init__(self, config: BenchArmConfig) -> None:
        super().__init__(config)
        self.side, self.since_s = 0.0, 0.0
        self._picture = np.zeros((CAMERA_PX, CAMERA_PX, 3), np.uint8)

    @property
    def observation_features(self) -> dict[str, Any]:
        """Joints and a camera."""
        return {**dict.fromkeys(_NAMES, float), "top": self._picture.shape}

    @property
    def action_features(self) -> dict[str, Any]:
        """Joints."""
        return dict.fromkeys(_NAMES, float)

    def connect(self, calibrate: bool = True) -> None:
        """Nothing."""

    def calibrate(self) -> None:
        """Nothing."""

    def configure(self) -> None:
        """Nothing."""

    def disconnect(self) -> None:
        """Nothing."""

    def get_observation(self) -> dict[str, Any]:
        """Return joints and picture."""
        phase = 2 * math.pi * _SWING_HZ * time.monotonic()
        return {**{n: _SWING_RAD * math.sin(phase + i) for i, n in enumerate(_NAMES)}, "top": self._picture}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        """Take an action."""
        side = math.copysign(1.0, action[_NAMES[0]])
        if side != self.side:
            self.since_s, self.side = time.monotonic(), side
        return action


class Errors(logging.Handler):
    """Keeps the errors that LeRobot's client logs, and goes on after."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.texts.append(record.getMessage())


class Client(RobotClient):  # type: ignore[misc]
    """LeRobot's client, its loop on absolute deadlines and counted."""

    def __init__(self, config: RobotClientConfig, fifo: bool) -> None:
        super().__init__(config)
        self.window = Counters()
        self.errors = Errors()
        self.logger.addHandler(self.errors)
        self._fifo = fifo

    def instruct(self, folder: str) -> None:
        """Send LeRobot's policy instructions; the call returns when the server has loaded."""
        self.policy_config.pretrained_name_or_path = folder
        if not self.start():
            raise RuntimeError("the server took no instructions")

    def control_loop(self, task: str, verbose: bool = False) -> None:
        """Do what ``RobotClient.control_loop`` does, in its order."""
        self.start_barrier.wait()
        if self._fifo:
            take_fifo(10)
        period_ns = round(1e9 / self.config.fps)
        schedule = Schedule(period_ns, time.monotonic_ns() + period_ns)
        while self.running:
            left_ns = schedule.deadline_ns - time.monotonic_ns()
            if left_ns > 0:
                time.sleep(left_ns / 1e9)
            starved = not self.actions_available()
            if not starved:
                self.control_loop_action(verbose)
            late_ns, skipped = schedule.finish(time.monotonic_ns())
            self.window.add(late_ns, period_ns, skipped, starved=starved, clamped=False)
            if self._ready_to_send_observation():
                self.control_loop_observation(task, verbose)


class WithoutHandshake:
    """LeRobot's stub after the first handshake."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)

    def Ready(self, request: Any) -> Any:  # noqa: N802
        """Nothing: the server is."""
        return services_pb2.Empty()


class Program:
    """What the driver can ask for."""

    def __init__(self, settings: dict[str, Any]) -> None:
        logging.getLogger().setLevel(logging.ERROR)
        port = _free_port()
        self._server = _serve(port, settings["rate_hz"])
        config = RobotClientConfig(
            policy_type="act",
            pretrained_name_or_path=settings["folder"],
            robot=BenchArmConfig(id="bench", calibration_dir=Path.cwd()),
            actions_per_chunk=CHUNK,
            server_address=f"127.0.0.1:{port}",
            fps=settings["rate_hz"],
        )
        self._client = Client(config, settings["fifo"])
        self._client.instruct(settings["folder"])
        self._client.stub = WithoutHandshake(self._client.stub)
        gc.collect()
        threading.Thread(target=self._client.receive_actions, daemon=True).start()
        threading.Thread(target=self._client.control_loop, args=("",), daemon=True).start()
        self._wait_acting(settings["folder"])
        time.sleep(_SETTLE_S)  # the server's first inferences are slow

    def idle(self, watch_s: float) -> dict[str, float]:
        """Count for a while in which nothing is replaced."""
        self._client.window = Counters()
        return self._counts(watch_s)

    def swap(self, folder: str, watch_s: float) -> dict[str, float]:
        """Replace the policy by the one on disk; count until ``watch_s`` after its first action."""
        self._client.window = Counters()
        begin_s = time.monotonic()
        self._client.instruct(folder)
        load_s = time.monotonic() - begin_s
        acted_s = self._wait_acting(folder)
        found = {"acted_ms": (acted_s - begin_s) * 1e3, **self._counts(watch_s)}
        return {**found, "load_ms": load_s * 1e3}

    def rollback(self, folder: str, watch_s: float) -> dict[str, float]:
        """Go back to the policy before: the same instructions with its path."""
        return self.swap(folder, watch_s)

    def close(self) -> None:
        """End client and server."""
        self._client.shutdown_event.set()
        self._server.kill()
        self._server.wait(10.0)

    def _counts(self, after_s: float) -> dict[str, float]:
        time.sleep(after_s)
        if self._client.errors.texts:
            raise RuntimeError(self._client.errors.texts[0])
        window = self._client.window
        return {"missed": window.missed, "starved": window.starved, "worst_ms": window.worst_late_ns / 1e6}

    def _wait_acting(self, folder: str) -> float:
        """Wait until that policy acts; return since when [s]."""
        side = math.copysign(1.0, MARKS[Path(folder).name])
        deadline = time.monotonic() + _TIMEOUT_S
        while self._client.robot.side != side:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{folder} does not act")
            time.sleep(0.002)
        return float(self._client.robot.since_s)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _serve(port: int, rate_hz: int) -> subprocess.Popen[bytes]:
    """Start LeRobot's server and wait until it listens."""
    module = "lerobot.async_inference.policy_server"
    command = [sys.executable, "-m", module, "--host=127.0.0.1", f"--port={port}", f"--fps={rate_hz}"]
    with Path("server.log").open("wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    deadline = time.monotonic() + 3 * _TIMEOUT_S  # its imports
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                raise RuntimeError(Path("server.log").read_text()[-2000:]) from None
            time.sleep(0.1)
        else:
            return server


def main() -> None:
    """``python -m benchmarks.swap_lerobot_peer '{"folder", "rate_hz", "fifo"}'``."""
    program = Program(json.loads(sys.argv[1]))
    try:
        say(acted=True)
        answer(program)
    finally:
        program.close()


if __name__ == "__main__":
    main()
