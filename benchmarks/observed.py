# SPDX-License-Identifier: Apache-2.0
"""Our control loop with every tick of it on record: in its own process as the product runs it, or in a thread of this one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vla_policy_node.contract.model import Contract
from vla_policy_node.control.client import ControlClient, ControlStatus
from vla_policy_node.control.runner import Runner
from vla_policy_node.control.sinks import CommandSink, open_sink
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.channel import Channel, ChannelClosedError
from vla_policy_node.ipc.layouts import MODES, control_status_layout

_SLOTS = 4096
_FIELDS = ("tick", "stamp_ns", "mode", "worst_late_ns", "missed", "starved")
_COMMANDING = (MODES.index("RUNNING"), MODES.index("HOLDING"))


@dataclass(frozen=True)
class Ticks:
    """What the loop did in a stretch of time. ``late_ms``: command out against its deadline, for each tick that had one."""

    late_ms: list[float]
    missed: int
    starved: int


class ObservedControl(ControlClient):
    """A ControlClient whose status memory is large enough to keep every tick of a run."""

    def __init__(
        self, contract: Contract, observation: Arena, sink: Mapping[str, Any], fifo_priority: int | None
    ) -> None:
        super().__init__(contract, observation, sink=sink, on_event=lambda event: None, fifo_priority=fifo_priority)
        assert self._status is not None
        self._status.close()
        self._status = Arena.create(control_status_layout(len(contract.channels)), _SLOTS)

    def wait_for(self, mode: str) -> ControlStatus:
        """Wait until the loop is in this mode; return its status."""
        deadline = time.monotonic() + 60.0
        while (status := self.status()) is None or status.mode != mode:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the loop is not {mode}: {status}")
            time.sleep(0.01)
        return status

    def between(self, begin_ns: int, end_ns: int) -> Ticks:
        """Return what happened between two times of the monotonic clock.

        The records hold each tick's number and the time when its command was out, but not when it was due. Deadlines are
        ``start + tick * period`` (``schedule.py``); a tick is never later than the worst so far, and one of them is that worst:
        so ``start`` is the largest ``stamp - worst - tick * period``.
        """
        assert self._status is not None
        newest = self._status.newest
        found = (self._status.read(_FIELDS, seq=seq) for seq in range(max(1, newest - _SLOTS + 2), newest + 1))
        records = [{k: int(v) for k, v in r[1].items()} for r in found if r is not None]
        records = [r for r in records if r["mode"] in _COMMANDING]
        period_ns = round(1e9 / self._contract.rate_hz)
        start_ns = max(r["stamp_ns"] - r["worst_late_ns"] - r["tick"] * period_ns for r in records)
        inside = [r for r in records if begin_ns <= r["stamp_ns"] < end_ns]
        late_ms = [(r["stamp_ns"] - start_ns - r["tick"] * period_ns) / 1e6 for r in inside]
        first, last = inside[0], inside[-1]
        return Ticks(late_ms, last["missed"] - first["missed"], last["starved"] - first["starved"])


class ControlInThread(ObservedControl):
    """The same loop as a thread of the calling process, which is what most ROS nodes do."""

    def start(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """Start the thread."""
        assert self._status is not None and self._operator is not None
        self._channel, self._theirs = Channel.pair()
        self._command_sink: CommandSink = open_sink(self._sink, self._contract)
        arenas = self._observation, self._status, self._operator
        self._runner = Runner(self._contract, self._theirs, *arenas, self._command_sink)
        self._loop_thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._drain = threading.Thread(target=self._listen, name="events", daemon=True)
        self._loop_thread.start()
        self._drain.start()
        return {"type": "STARTED", "fifo": 0, "mlock": False}

    def close(self, timeout_s: float = 3.0) -> None:
        """End the thread."""
        self._runner.stop()
        self._loop_thread.join(timeout_s)
        self._command_sink.close()
        self._theirs.close()
        self._drain.join(timeout_s)
        super().close(0.0)

    def _run(self) -> None:
        with contextlib.suppress(ChannelClosedError):
            self._runner.run()

    def _listen(self) -> None:
        assert self._channel is not None
        with contextlib.suppress(ChannelClosedError):
            while True:
                self._channel.receive(None)
