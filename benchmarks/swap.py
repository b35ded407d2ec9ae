# SPDX-License-Identifier: Apache-2.0
"""What replacing a policy costs the control loop that runs it: ``python -m benchmarks.swap --out build/bench``.

A transformer of 50 million parameters (200 MB of float32) is replaced under a running loop, and the replacement taken back, in
five ways: three as others do it (``swap_peers.py``), two as we do (``swap_ours.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.machine import describe
from benchmarks.processes import Host, PeakMemory
from benchmarks.results import Table, finish, percentile
from vla_policy_node.control.sinks import read_record
from vla_policy_node.worker.environment import worker_environment
from vla_sim.witness import FIFO_PRIORITY, Witness

RATES_HZ = (100, 200)
JOINTS = 7
WATCH_S = 1.0
FIRST, SECOND, THIRD = "1.0.0", "1.1.0", "1.2.0"
RESTART = "process restarted"
PEERS = {"between": "loaded between chunks by the loop", "thread": "loaded in a thread, pointer moves"}
COLD, SPARE = "ours, new worker started", "ours, spare worker waiting"
IDLE = (
    ("missed", "ticks missed", ".0f"),
    ("machines", "and by the witness too", ".0f"),
    ("worst_ms", "worst late, ms", ".1f"),
    ("witness_ms", "the witness's, ms", ".1f"),
    ("beyond_ms", "worst beyond the witness's, ms", ".1f"),
    ("starved", "starved", ".0f"),
)
COLUMNS = (*IDLE, ("acted_ms", "on disk → first action, ms", ".0f"), ("memory_mb", "peak memory, MB", ".0f"))
BACK = (*IDLE, ("acted_ms", "asked → first action, ms", ".0f"))
PARTS = (
    ("load_ms", "read and built, ms", ".0f"),
    ("golden_ms", "golden observations, ms", ".0f"),
    ("warm_up_ms", "warmed up, ms", ".0f"),
    ("rest_ms", "the rest: first chunk and boundary, ms", ".0f"),
)
IDLE_S = 3.0
LATE = (
    ("idle_ms", "p99.9 late, nothing replaced, ms", ".2f"),
    ("swap_ms", "p99.9 late, in swaps and ways back, ms", ".2f"),
    ("grows_ms", "more, ms", ".2f"),
    ("ticks", "ticks in swaps", ".0f"),
)
CAMERA_HZ = 30


class Measurement:
    """The tables, and how each way fills them."""

    def __init__(self, folder: Path, fifo: bool, cameras: int) -> None:
        self._folder, self._fifo, self._cameras = folder, fifo, cameras
        self._records, self._record = 0, ""
        self._late: dict[tuple[str, str], tuple[list[float], list[float]]] = {}  # idle, in swaps [ms]
        self.swaps = Table(f"A new policy under a running loop, to {WATCH_S:g} s after its first action", COLUMNS)
        self.rollbacks = Table(f"Back to the policy before, to {WATCH_S:g} s after its first action", BACK)
        self.parts = Table(
            "From the disk to the first action; ours compares every byte with the manifest meanwhile", PARTS
        )
        taken = (("pictures_s", "pictures taken /s", ".0f"),) if cameras else ()
        self.idle = Table(f"The same loops with nothing being replaced, {IDLE_S:g} s", (*IDLE, *taken))

    def restart(self) -> None:
        """End the process and start it with the other policy, three times; a rollback is a restart as well."""
        first, *others = [(100, FIRST), (100, SECOND), (200, FIRST), (200, SECOND)]
        host, record = self._peer("restart", *first)
        with PeakMemory(host.pid) as memory:
            host.hear(120.0)
        for rate_hz, version in others:
            begin_s = time.monotonic()
            host.kill()
            host.close()
            last_ms = read_record(record, JOINTS)[0][-1] / 1e6
            host, record = self._peer("restart", rate_hz, version)
            acted_s = float(host.hear(120.0)["acted_s"])
            acted_ms, gap_ms, period_ms = (acted_s - begin_s) * 1e3, acted_s * 1e3 - last_ms, 1e3 / rate_hz
            if version == FIRST:
                self.rollbacks.row(RESTART, "100 Hz").add(acted_ms=acted_ms)
                continue
            lateness = {"missed": gap_ms // period_ms, "worst_ms": gap_ms - period_ms}
            self.swaps.row(RESTART, f"{rate_hz} Hz").add(**lateness, acted_ms=acted_ms, memory_mb=memory.peak / 1e6)
        host.close()

    def peer(self, way: str) -> None:
        """Replace and take back at each rate, in one process."""
        name = PEERS[way]
        host, _ = self._peer(way, RATES_HZ[0], FIRST)
        with host:
            host.hear(120.0)
            for rate_hz in RATES_HZ:
                if rate_hz != RATES_HZ[0]:
                    host.ask(do="restart_loop", folder=self._bundle(rate_hz, FIRST), rate_hz=rate_hz)
                self._idle(host, name, rate_hz)
                self._exchange(host, name, rate_hz, SECOND)
                self._weigh(host, name, rate_hz, SECOND)

    def ours(self) -> None:
        """Replace without and with a spare worker, each taken back; a process of its own for each rate."""
        for rate_hz in RATES_HZ:
            settings = {**self._settings(rate_hz, FIRST), "root": str(self._folder / str(rate_hz))}
            with Host("benchmarks.swap_ours", settings, environment()) as host:
                host.hear(120.0)
                self._idle(host, "ours", rate_hz)
                self._exchange(host, COLD, rate_hz, SECOND, spare=False)
                host.ask(do="wait_for_spare")
                self._exchange(host, SPARE, rate_hz, THIRD, spare=True)
                host.ask(do="wait_for_spare")
                self._weigh(host, SPARE, rate_hz, SECOND)

    def _exchange(self, host: Host, name: str, rate_hz: int, version: str, *, spare: bool = False) -> None:
        condition = f"{rate_hz} Hz"
        found = self._count(host, name, rate_hz, do="swap", folder=self._bundle(rate_hz, version))
        if bool(found.pop("spare_used", spare)) != spare:
            raise RuntimeError(f"{name}: whether a spare worker was there is not as it should be")
        self.swaps.row(name, condition).add(**found)
        known_ms = sum(found.get(part, 0.0) for part, _, _ in PARTS)
        self.parts.row(name, condition).add(**found, rest_ms=found["acted_ms"] - known_ms)
        found = self._count(host, name, rate_hz, do="rollback", folder=self._bundle(rate_hz, FIRST))
        self.rollbacks.row(name, condition).add(**found)

    def _weigh(self, host: Host, name: str, rate_hz: int, version: str) -> None:
        """Replace once more for the memory alone: looking at it makes a loop late."""
        with PeakMemory(host.pid) as memory:
            host.ask(timeout_s=120.0, do="swap", folder=self._bundle(rate_hz, version), watch_s=0.0)
        self.swaps.row(name, f"{rate_hz} Hz").add(memory_mb=memory.peak / 1e6)

    def _idle(self, host: Host, name: str, rate_hz: int) -> None:
        self.idle.row(name, f"{rate_hz} Hz").add(**self._count(host, name, rate_hz, do="idle"))

    def _count(self, host: Host, name: str, rate_hz: int, **question: str) -> dict[str, float]:
        """Ask with a witness beside the loop; ticks that it missed too are the machine's."""
        idle = question["do"] == "idle"
        with Witness(rate_hz, FIFO_PRIORITY if self._fifo else 0) as witness:
            begin_s = time.monotonic()
            found = host.ask(timeout_s=120.0, watch_s=IDLE_S if idle else WATCH_S, **question)
            stamps_ns = read_record(self._record, JOINTS)[0]
            stamps_ns = stamps_ns[stamps_ns >= begin_s * 1e9]
            late_ms = lateness_ms(stamps_ns, rate_hz)
            beyond_ms = max(map(partial(_beyond, witness), stamps_ns, late_ms))
            machines = witness.share(int(found["missed"]), begin_s)
            witness_ms = max((late.late_s for late in witness.late(begin_s)), default=0.0) * 1e3
        loop = "ours" if name in (COLD, SPARE) else name
        self._late.setdefault((loop, f"{rate_hz} Hz"), ([], []))[0 if idle else 1].extend(late_ms)
        seen = {"machines": machines, "witness_ms": witness_ms, "beyond_ms": beyond_ms}
        return {**found, "missed": found["missed"] - machines, **seen}

    def _peer(self, way: str, rate_hz: int, version: str) -> tuple[Host, str]:
        settings = {"way": way, **self._settings(rate_hz, version)}
        return Host("benchmarks.swap_peers", settings, environment()), settings["record"]

    def _settings(self, rate_hz: int, version: str) -> dict[str, Any]:
        self._records += 1
        record = self._record = str(self._folder / f"commands-{self._records}")
        folder = self._bundle(rate_hz, version)
        return {"rate_hz": rate_hz, "folder": folder, "record": record, "fifo": self._fifo, "cameras": self._cameras}

    def late(self) -> Table:
        """Return the lateness of single ticks, all runs together."""
        table = Table(
            "Late ticks of all runs together; one that is later than 3/4 of a period is not told from an early one",
            LATE,
        )
        for (name, condition), (idle, swaps) in self._late.items():
            quiet, busy = percentile(idle, 0.999), percentile(swaps, 0.999)
            table.row(name, condition).add(idle_ms=quiet, swap_ms=busy, grows_ms=busy - quiet, ticks=len(swaps))
        return table

    def _bundle(self, rate_hz: int, version: str) -> str:
        return str(self._folder / str(rate_hz) / version)


def lateness_ms(stamps_ns: npt.NDArray[np.int64], rate_hz: float) -> list[float]:
    """Return how late each command was, against the least late one [ms]; deadlines are a period apart."""
    parts = (stamps_ns - stamps_ns[0]) * (rate_hz / 1e9) % 1.0
    middle = float(np.median((parts + 0.5) % 1.0)) - 0.5  # the first one is as punctual as most
    late = (parts - middle + 0.25) % 1.0
    found: list[float] = ((late - late.min()) * (1e3 / rate_hz)).tolist()
    return found


def _beyond(witness: Witness, stamp_ns: int, late_ms: float) -> float:
    """Return by how much a tick was later than the witness at that time [ms]."""
    if late_ms < 1.0:  # the witness writes down no less
        return late_ms
    stamp_s = stamp_ns / 1e9
    return late_ms - max((late.late_s * 1e3 for late in witness.late(stamp_s - late_ms / 1e3, stamp_s)), default=0.0)


def environment() -> dict[str, str]:
    """One thread for computations, as our workers have; the ROS wheels do not start the interpreter twice."""
    base = worker_environment(os.environ)
    return {name: base[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "_ROS_WHEELS_BOOTSTRAP_COMPLETE")}


def measure(folder: Path, arguments: argparse.Namespace, stop_at_s: float) -> list[Table]:
    """Go through all ways, or ours alone, and that ``runs`` times, as long as there is time."""
    measurement = Measurement(folder, not arguments.no_fifo, arguments.cameras)
    peers: list[Callable[[], None]] = [lambda: measurement.peer("between"), lambda: measurement.peer("thread")]
    if not arguments.cameras:  # what it costs to start a node that takes pictures is not the question
        peers.insert(0, measurement.restart)
    for _ in range(arguments.runs):  # A B C D, A B C D, …: what changes on the machine meanwhile meets all of them
        begin = time.monotonic()
        for way in [*([] if arguments.large else peers), measurement.ours]:
            way()
        if time.monotonic() + (time.monotonic() - begin) > stop_at_s:
            break
    swaps, rollbacks = measurement.swaps, measurement.rollbacks
    for table, metric, what in (
        (swaps, "worst_ms", "worst lateness"),
        (swaps, "acted_ms", "time to the first action"),
        (swaps, "memory_mb", "peak memory"),
        (rollbacks, "acted_ms", "time to go back"),
    ):
        for peer in (RESTART, *PEERS.values()):
            table.note_ratio(metric, peer, SPARE, what)
    return [swaps, measurement.parts, rollbacks, measurement.idle, measurement.late()]


def _pictures(cameras: int, folder: str) -> contextlib.AbstractContextManager[object]:
    """Let cameras send their pictures, in a domain of its own."""
    if not cameras:
        return contextlib.nullcontext()
    os.environ |= {"ROS_DOMAIN_ID": str(81 + os.getpid() % 20), "ROS_LOG_DIR": folder}  # of every process
    return Host("benchmarks.ros.camera", {"cameras": cameras, "rate_hz": CAMERA_HZ})


def main() -> None:
    """Make the bundles, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="500 million parameters, ours alone")
    parser.add_argument("--cameras", type=int, default=0, help="so many 640×480 cameras stream into each process")
    parser.add_argument("--no-fifo", action="store_true", help="no loop, ours or theirs, asks for SCHED_FIFO")
    parser.add_argument(
        "--budget", type=float, default=190.0, help="begin no further run when it would take longer [s]"
    )
    arguments = parser.parse_args()
    stop_at_s = time.monotonic() + arguments.budget
    machine = describe()
    with tempfile.TemporaryDirectory(prefix="vla_ota_bench_") as name:
        make = [sys.executable, "-m", "benchmarks.transformer.make", name, *(str(rate) for rate in RATES_HZ)]
        subprocess.run([*make, *(["--large"] if arguments.large else [])], check=True, timeout=300)
        size = (Path(name) / str(RATES_HZ[0]) / FIRST / "model.safetensors").stat().st_size
        with _pictures(arguments.cameras, name):
            tables = measure(Path(name), arguments, stop_at_s)
    settings = {
        "weights_bytes": size,
        "fifo_asked_for": not arguments.no_fifo,
        "cameras": f"{arguments.cameras} × 640×480 RGB at {CAMERA_HZ} Hz",
        "watch_s": WATCH_S,
        "inference_threads": 1,
    }
    name = "_".join(["swap", *(["large"] if arguments.large else []), *(["cameras"] if arguments.cameras else [])])
    finish(name, arguments.out, machine, settings, tables)


if __name__ == "__main__":
    main()
