# SPDX-License-Identifier: Apache-2.0
"""What replacing LeRobot's ACT costs the loop, by LeRobot's own server and by us: ``python -m benchmarks.swap_lerobot``.

LeRobot's default ACT (52 million parameters, 207 MB), made and saved by LeRobot, is replaced under a running loop and taken back,
by LeRobot's asynchronous inference (``swap_lerobot_peer.py``) and by our node with LeRobot in its workers (``swap_ours.py``).
``VLA_OTA_LEROBOT_PYTHON`` names LeRobot's interpreter (default: .venv-lerobot/bin/python), which needs ``lerobot[async]``;
without that, one line says so and nothing is measured.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.processes import Host
from benchmarks.results import Table, finish
from benchmarks.robot import ROBOT_TYPE
from benchmarks.swap import FIRST, JOINTS, RATES_HZ, SECOND, SPARE, THIRD, WATCH_S, Measurement, environment
from vla_checkpoint import Channel, import_folder, write_golden
from vla_policy_node.worker.environment import PACKAGE_ROOT, worker_environment

NETWORK = "LeRobot's ACT, 52 M parameters"
LEROBOT = "LeRobot's policy server, new instructions"
PYTHON = os.environ.get("VLA_OTA_LEROBOT_PYTHON", str(PACKAGE_ROOT / ".venv-lerobot/bin/python"))
SERVER = "lerobot.async_inference.policy_server"
_TOLERANCE_RAD = 1e-3
_START_S = 300.0


class LeRobotMeasurement(Measurement):
    """The same tables with LeRobot's own program as the only peer."""

    def __init__(self, folder: Path, fifo: bool, camera_px: int) -> None:
        super().__init__(folder, fifo, 0)
        self._camera_px = camera_px
        for table in (self.swaps, self.rollbacks, self.parts, self.idle):
            table.title = f"{NETWORK}: {table.title}"

    def lerobot(self) -> None:
        """Replace and take back; server and client anew for each rate."""
        for rate_hz in RATES_HZ:
            settings = self._settings(rate_hz, FIRST)
            host = Host(
                "benchmarks.swap_lerobot_peer", settings, lerobot_environment(), python=PYTHON, directory=self._folder
            )  # fmt: skip
            with host:
                host.hear(_START_S)
                self._idle(host, LEROBOT, rate_hz)
                self._exchange(host, LEROBOT, rate_hz, SECOND)
                self._weigh(host, LEROBOT, rate_hz, SECOND)

    def ours(self) -> None:
        """Replace with a spare worker and take back; a process of its own for each rate."""
        for rate_hz in RATES_HZ:
            settings = {**self._settings(rate_hz, FIRST), "root": str(self._folder / str(rate_hz))}
            settings |= {"worker_python": PYTHON, "camera_px": self._camera_px}
            with Host("benchmarks.swap_ours", settings, environment()) as host:
                host.hear(_START_S)
                self._idle(host, SPARE, rate_hz)
                host.ask(timeout_s=_START_S, do="wait_for_spare")
                self._exchange(host, SPARE, rate_hz, SECOND, spare=True)
                host.ask(timeout_s=_START_S, do="wait_for_spare")
                self._weigh(host, SPARE, rate_hz, THIRD)


def lerobot_environment() -> dict[str, str]:
    """Return all variables of a program in LeRobot's interpreter: one thread for computations, as our workers have."""
    return worker_environment(os.environ, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))


def missing(folder: Path) -> str:
    """Return what LeRobot's server lacks to run here; empty = nothing."""
    try:
        done = subprocess.run(
            [PYTHON, "-c", f"import {SERVER}"], env=lerobot_environment(), cwd=folder, check=False, capture_output=True,
            text=True, timeout=_START_S,
        )  # fmt: skip
    except OSError as e:
        return f"{PYTHON}: {e.strerror}"
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1] if done.returncode else ""


def make(folder: Path) -> int:
    """Let LeRobot make its checkpoints, and make bundles of them, one for each rate, on the disk when this returns.

    Returns:
        Rows and columns of the pictures that they take.
    """
    command = [PYTHON, "-m", "benchmarks.swap_lerobot_make", str(folder / "made")]
    subprocess.run(command, env=lerobot_environment(), cwd=folder, check=True, timeout=_START_S)
    channels = [Channel(f"j{i}", "rad", "absolute") for i in range(JOINTS)]
    for version in (FIRST, SECOND, THIRD):
        made = folder / "made" / version
        golden: dict[str, Any] = dict(np.load(made / "golden.npz"))
        chunks = golden.pop("action")
        path = made / "pretrained_model" / "golden.safetensors"
        write_golden(path, golden, chunks, [""] * len(chunks), _TOLERANCE_RAD)
        for rate_hz in RATES_HZ:
            import_folder(
                path.parent, folder / str(rate_hz) / version, name="bench", version=version, robot_type=ROBOT_TYPE,
                channels=channels, rate_hz=float(rate_hz),
            )  # fmt: skip
    os.sync()
    return int(golden["observation.images.top"].shape[1])


def measure(measurement: LeRobotMeasurement, runs: int, stop_at_s: float) -> list[Table]:
    """Take turns ``runs`` times, as long as there is time."""
    for _ in range(runs):
        begin = time.monotonic()
        measurement.lerobot()
        measurement.ours()
        if time.monotonic() + (time.monotonic() - begin) > stop_at_s:
            break
    measurement.swaps.note_ratio("acted_ms", LEROBOT, SPARE, "time to the first action")
    measurement.swaps.note_ratio("memory_mb", LEROBOT, SPARE, "peak memory")
    measurement.rollbacks.note_ratio("acted_ms", LEROBOT, SPARE, "time to go back")
    return [measurement.swaps, measurement.parts, measurement.rollbacks, measurement.idle]


def main() -> None:
    """Make the bundles, measure, print, write; or say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-fifo", action="store_true", help="no loop, ours or theirs, asks for SCHED_FIFO")
    parser.add_argument(
        "--budget", type=float, default=600.0, help="begin no further run when it would take longer [s]"
    )
    arguments = parser.parse_args()
    stop_at_s = time.monotonic() + arguments.budget
    with tempfile.TemporaryDirectory(prefix="vla_ota_bench_") as name:
        if lacks := missing(Path(name)):
            print(f"LeRobot's policy server is not measured: {lacks} (it needs lerobot[async] in {PYTHON})", flush=True)
            return
        machine = describe()
        measurement = LeRobotMeasurement(Path(name), not arguments.no_fifo, make(Path(name)))
        size = (Path(name) / str(RATES_HZ[0]) / FIRST / "model.safetensors").stat().st_size
        tables = measure(measurement, arguments.runs, stop_at_s)
    settings = {
        "weights_bytes": size,
        "fifo_asked_for": not arguments.no_fifo,
        "watch_s": WATCH_S,
        "inference_threads": 1,
    }
    finish("swap_lerobot", arguments.out, machine, settings, tables)


if __name__ == "__main__":
    main()
