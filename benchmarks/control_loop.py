# SPDX-License-Identifier: Apache-2.0
"""How late a control loop is under a node's load, and what a tick costs: ``python -m benchmarks.control_loop --out build/bench``.

Lateness: the same loop (``vla_policy_node.control``, commands on a ROS topic) as a thread of the loaded node, as a process of its
own, and as that under SCHED_FIFO. Cost: processor time of our control process for each tick, against a loop that only waits and
publishes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.observed import ObservedControl
from benchmarks.processes import Host, cpu_s
from benchmarks.results import Table, finish
from benchmarks.robot import FreePolicy, contract
from vla_checkpoint import ActionSpec, Channel, FileEntry, Manifest

WAYS = {"thread": "thread of the loaded process", "process": "own process", "fifo": "own process, FIFO"}
RATES_HZ = (50, 100, 200)
JOINTS = (3, 7, 14)
CAMERAS, CAMERA_HZ = 3, 30
TENSORS, WORK_PERIOD_S = 1000, 0.5
LATENESS = (
    ("p50_ms", "p50 late, ms", ".2f"),
    ("p99_ms", "p99 late, ms", ".2f"),
    ("worst_ms", "worst late, ms", ".1f"),
    ("missed", "ticks missed", ".0f"),
    ("machines", "and by the witness too", ".0f"),
    ("ticks", "of", ".0f"),
    ("pictures_s", "pictures taken /s", ".0f"),
)
COST = (("cpu_us", "processor time a tick, µs", ".0f"), ("share", "of one core at this rate, %", ".1f"))
COST_RATE_HZ = 200


def large_manifest(tensors: int) -> bytes:
    """Return a valid manifest with so many tensors."""
    hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(tensors)]
    return Manifest(
        name="bench",
        version="1.0.0",
        policy_type="bench",
        robot_type="bench_arm",
        action=ActionSpec((Channel("j0", "rad", "absolute"),), 50.0),
        created="2026-01-01T00:00:00Z",
        files=(FileEntry("model.safetensors", 1, hashes[0]),),
        tensors={"model.safetensors": {f"model.layers.{i}.attention.weight": h for i, h in enumerate(hashes)}},
    ).canonical()


def lateness(folder: Path, runs: int, duration_s: float, stop_at_s: float) -> Table:
    """Measure the ways one after the other, and all of that ``runs`` times."""
    table = Table("Lateness of the control loop while its node takes pictures and works", LATENESS)
    manifest = folder / "manifest.json"
    manifest.write_bytes(large_manifest(TENSORS))
    domain_id = int(os.environ.get("ROS_DOMAIN_ID", 81 + os.getpid() % 20))
    ros = {"ROS_DOMAIN_ID": str(domain_id), "ROS_LOG_DIR": str(folder)}
    load = {"cameras": CAMERAS, "manifest": str(manifest), "work_period_s": WORK_PERIOD_S, "domain_id": domain_id}
    with (
        Host("benchmarks.ros.camera", {"cameras": CAMERAS, "rate_hz": CAMERA_HZ}, ros) as cameras,
        Host("benchmarks.ros.loop_host", load, ros) as host,
    ):
        cameras.hear(30.0)
        host.hear(30.0)
        for run in range(runs):
            begin = time.monotonic()
            for rate_hz in RATES_HZ:
                for way, name in WAYS.items():
                    found = host.ask(way=way, rate_hz=rate_hz, joints=7, duration_s=duration_s)
                    if way == "fifo" and not found.pop("fifo"):
                        name += " (not allowed here)"
                    table.row(name, f"{rate_hz} Hz").add(**{k: v for k, v in found.items() if k != "fifo"})
            if run + 1 < runs and time.monotonic() + (time.monotonic() - begin) > stop_at_s:
                break
    for name in [row.way for row in table.rows if row.condition == f"{RATES_HZ[0]} Hz" and row.way != WAYS["thread"]]:
        table.note_ratio("worst_ms", WAYS["thread"], name, "worst lateness")
    return table


def cost(folder: Path, runs: int, duration_s: float) -> Table:
    """Measure processor time a tick by numbers of channels, without any load."""
    table = Table(f"Cost of a tick at {COST_RATE_HZ} Hz, commands into a file", COST)
    for run in range(runs):
        for joints in JOINTS:
            path = str(folder / f"commands-{run}-{joints}")
            for way, used in (
                ("bare loop", _bare(path, joints, duration_s)),
                ("ours", _ours(path, joints, duration_s)),
            ):
                share = used / duration_s
                table.row(way, f"{joints} channels").add(cpu_us=share / COST_RATE_HZ * 1e6, share=share * 100)
    table.note_ratio("cpu_us", "ours", "bare loop", "processor time")
    return table


def _bare(path: str, joints: int, duration_s: float) -> float:
    with Host("benchmarks.bare_loop", {"rate_hz": COST_RATE_HZ, "joints": joints, "path": path}) as host:
        host.hear(30.0)
        return _used_s(host.pid, duration_s)


def _ours(path: str, joints: int, duration_s: float) -> float:
    policy = FreePolicy(COST_RATE_HZ, joints)
    control = ObservedControl(
        contract(COST_RATE_HZ, joints), policy.observation, {"kind": "record", "path": path}, None
    )
    try:
        control.start()
        control.add_generation(policy.handle)
        control.activate(1, "NOW", "first", 10.0)
        control.enable(True)
        control.wait_for("RUNNING")
        assert control.pid is not None
        return _used_s(control.pid, duration_s)
    finally:
        control.close()
        policy.close()


def _used_s(pid: int, duration_s: float) -> float:
    time.sleep(0.2)
    before, begin = cpu_s(pid), time.monotonic()
    time.sleep(duration_s)
    used, passed = cpu_s(pid) - before, time.monotonic() - begin
    return used / passed * duration_s


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--duration", type=float, default=1.5, help="of one measurement of lateness [s]")
    parser.add_argument(
        "--budget", type=float, default=110.0, help="begin no further run when it would take longer [s]"
    )
    arguments = parser.parse_args()
    stop_at_s = time.monotonic() + arguments.budget
    machine = describe()
    with tempfile.TemporaryDirectory(prefix="vla_ota_bench_") as name:
        tables = [
            cost(Path(name), arguments.runs, 0.8),
            lateness(Path(name), arguments.runs, arguments.duration, stop_at_s),
        ]
    settings: dict[str, Any] = {
        "duration_s": arguments.duration,
        "cameras": f"{CAMERAS} × 640×480 RGB at {CAMERA_HZ} Hz",
        "work": f"a manifest of {TENSORS} tensors parsed, then {WORK_PERIOD_S} s of rest",
    }
    finish("control_loop", arguments.out, machine, settings, tables)


if __name__ == "__main__":
    main()
