# SPDX-License-Identifier: Apache-2.0
"""A policy node without ROS (control process, workers) that is asked to replace its policy: our program in ``swap.py``."""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.processes import answer, say
from benchmarks.robot import contract, pictures, quiet, taking
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.engine import PolicyEngine
from vla_policy_node.generations.swapping import ROLLBACK, SwapRequest
from vla_policy_node.worker.api import WorkerEvent

_JOINTS = 7
_SPAN = "bench"


class ObservedEngine(PolicyEngine):
    """An engine that tells of its spare worker and counts over any stretch of time."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._spare_ready = threading.Event()
        self._counted: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        super().__init__(*arguments, **more)

    def wait_for_spare(self, timeout_s: float = 60.0) -> None:
        """Start the spare worker now rather than some seconds after a swap, and wait until its imports are done."""
        self._pool.ensure_spare()
        if not self._spare_ready.wait(timeout_s):
            raise TimeoutError("no spare worker came")

    def forget_spare(self) -> None:
        """The spare worker, if there is one, is about to be taken."""
        self._spare_ready.clear()

    def begin_counting(self) -> None:
        """Count anew."""
        self._control.begin_span(_SPAN)

    def counts(self, after_s: float) -> dict[str, float]:
        """Return what was counted, up to ``after_s`` from now."""
        self._control.end_span(_SPAN, after_s)
        span = self._counted.get(timeout=after_s + 10.0)
        return {
            key: span[name]
            for key, name in (("missed", "missed"), ("starved", "starved"), ("worst_ms", "worst_late_ms"))
        }

    def _on_control(self, event: dict[str, Any]) -> None:
        if event.get("span_id") == _SPAN:
            self._counted.put(event)
        super()._on_control(event)

    def _on_worker(self, event: WorkerEvent) -> None:
        if event.kind == "SPARE_READY":
            self._spare_ready.set()
        super()._on_worker(event)


class Program:
    """What the driver can ask for."""

    def __init__(self, settings: dict[str, Any]) -> None:
        config = PolicyNodeConfig(
            model_path=settings["folder"],
            bundle_roots=(settings["root"],),
            policy_modules=("bench_transformer=benchmarks.transformer",),
            instruction="reach the red block",
            worker_python=settings.get("worker_python", ""),
            fifo_priority=10 if settings["fifo"] else 0,
            shadow_chunks=0,  # the others have none
        )
        self._camera_px = int(settings.get("camera_px", 0))
        robot_contract = contract(settings["rate_hz"], _JOINTS, self._camera_px)
        sink = {"kind": "record", "path": settings["record"]}
        self._engine = ObservedEngine(config, robot_contract, sink=sink, listener=quiet())
        self._pictures = pictures(settings["cameras"])
        self._over = threading.Event()
        self._robot = threading.Thread(target=self._feed, daemon=True)
        self._robot.start()
        self._engine.start()
        self._engine.enable(True)
        _wait_for(self._runs, "the first policy acting")

    def idle(self, watch_s: float) -> dict[str, float]:
        """Count for a while in which nothing is replaced."""
        self._engine.begin_counting()
        return taking(self._pictures, lambda: self._engine.counts(watch_s))

    def wait_for_spare(self) -> dict[str, float]:
        """Let a spare worker wait."""
        self._engine.wait_for_spare()
        return {}

    def swap(self, folder: str, watch_s: float) -> dict[str, float]:
        """Replace the policy by the one on disk; count until ``watch_s`` after its first action."""
        active = self._engine.generations.residents.active
        assert active is not None
        self._digest = active.digest
        self._engine.forget_spare()
        return self._swap(SwapRequest(bundle_path=folder, at="CHUNK"), watch_s)

    def rollback(self, folder: str, watch_s: float) -> dict[str, float]:
        """Go back to the policy before."""
        return self._swap(SwapRequest(digest=self._digest, at="NOW", cause=ROLLBACK), watch_s)

    def _swap(self, request: SwapRequest, watch_s: float) -> dict[str, float]:
        self._engine.begin_counting()
        begin_s = time.monotonic()
        _, report = self._engine.swap(request)
        assert report is not None
        counts = self._engine.counts(watch_s)
        parts = {}
        if not report.warm:
            timings = report.timings
            parts = {f"{k}_ms": getattr(timings, f"{k}_s") * 1e3 for k in ("load", "digest", "golden", "warm_up")}
            parts["spare_used"] = float(timings.spare_used)
        return {"acted_ms": (report.acted_s - begin_s) * 1e3, **parts, **counts}

    def close(self) -> None:
        """End every process."""
        self._engine.close()
        if self._pictures is not None:
            self._pictures.close()
        self._over.set()
        self._robot.join(5.0)

    def _runs(self) -> bool:
        status = self._engine.snapshot().control
        return status is not None and status.mode == "RUNNING"

    def _feed(self) -> None:
        """The robot: always at the last command."""
        names, position = [f"j{i}" for i in range(_JOINTS)], np.zeros(_JOINTS)
        px = self._camera_px
        picture = SimpleNamespace(encoding="rgb8", height=px, width=px, step=3 * px, data=bytes(3 * px * px))
        while not self._over.wait(0.01):
            status = self._engine.snapshot().control
            if status is not None and np.all(np.isfinite(status.command)):
                position = status.command
            message = SimpleNamespace(name=names, position=position.tolist(), velocity=[], effort=[])
            self._engine.observations.receive("observation.state", 0, message)
            if px:
                self._engine.observations.receive("observation.images.top", 0, picture)


def _wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.005)


def main() -> None:
    """``python -m benchmarks.swap_ours '{"folder", "root", "rate_hz", "record", "fifo", "cameras"}'``.

    Beside these, ``worker_python`` names the workers' interpreter, and ``camera_px`` is the side of a policy's picture.
    """
    logging.getLogger("vla_policy_node").setLevel(logging.ERROR)  # what is worth a warning is in the counts
    program = Program(json.loads(sys.argv[1]))
    try:
        say(acted=True)
        answer(program)
    finally:
        program.close()


if __name__ == "__main__":
    main()
