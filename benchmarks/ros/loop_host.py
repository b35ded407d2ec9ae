# SPDX-License-Identifier: Apache-2.0
"""The process of a robot's node under load. Asked on standard input to run a control loop for a while, here or beside itself.

Its load is the same for every way of running the loop: an executor that takes the pictures of three cameras, and a thread that
parses a large manifest now and then in plain Python; the garbage collector is as Python ships it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.observed import ControlInThread, ObservedControl
from benchmarks.processes import say
from benchmarks.results import percentile
from benchmarks.robot import FreePolicy, contract
from benchmarks.ros.pictures import Pictures
from vla_checkpoint import Manifest
from vla_sim.witness import FIFO_PRIORITY, Witness

_SETTLE_S = 0.3


class Work:
    """Parses a manifest of so many tensors every ``period_s``, as a node does when a bundle arrives."""

    def __init__(self, manifest: bytes, period_s: float) -> None:
        self._manifest, self._period_s = manifest, period_s
        self.done = 0
        threading.Thread(target=self._run, name="work", daemon=True).start()

    def _run(self) -> None:
        while True:
            Manifest.parse(self._manifest)
            self.done += 1
            time.sleep(self._period_s)


def run(way: str, rate_hz: float, joints: int, duration_s: float, domain_id: int, pictures: Pictures) -> dict[str, Any]:
    """Run a loop for ``duration_s`` and return its lateness."""
    spec = contract(rate_hz, joints)
    sink = {"kind": "ros", "node_name": "bench_control", "namespace": "", "domain_id": domain_id}
    policy = FreePolicy(rate_hz, joints)
    kind = ControlInThread if way == "thread" else ObservedControl
    priority = FIFO_PRIORITY if way == "fifo" else 0
    control = kind(spec, policy.observation, sink, priority or None)
    try:
        started = control.start()
        control.add_generation(policy.handle)
        control.activate(1, "NOW", "first", 10.0)
        control.enable(True)
        control.wait_for("RUNNING")
        time.sleep(_SETTLE_S)
        with Witness(rate_hz, priority) as witness:
            begin_ns, taken = time.monotonic_ns(), pictures.taken
            time.sleep(duration_s)
            ticks = control.between(begin_ns, time.monotonic_ns())
            machines = witness.share(ticks.missed, begin_ns / 1e9)
        return {
            "p50_ms": percentile(ticks.late_ms, 0.5),
            "p99_ms": percentile(ticks.late_ms, 0.99),
            "worst_ms": max(ticks.late_ms),
            "missed": ticks.missed - machines,
            "machines": machines,
            "ticks": len(ticks.late_ms),
            "pictures_s": (pictures.taken - taken) / duration_s,
            "fifo": started["fifo"],
        }
    finally:
        control.close()
        policy.close()


def main() -> None:
    """``python -m benchmarks.ros.loop_host '{"domain_id", "cameras", "manifest", "work_period_s"}'``."""
    settings = json.loads(sys.argv[1])
    pictures = Pictures(settings["cameras"])
    work = Work(Path(settings["manifest"]).read_bytes(), settings["work_period_s"])
    pictures.wait()
    deadline = time.monotonic() + 15.0
    while work.done < 1:
        if time.monotonic() > deadline:
            raise TimeoutError("no manifest was parsed")
        time.sleep(0.05)
    say(ready=True)
    for line in sys.stdin:
        say(**run(domain_id=settings["domain_id"], pictures=pictures, **json.loads(line)))
    pictures.close()


if __name__ == "__main__":
    main()
