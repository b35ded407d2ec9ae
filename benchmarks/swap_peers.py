# SPDX-License-Identifier: Apache-2.0
"""How others replace a policy, as one process with torch in it: the measured program of the peers in ``swap.py``.

Small re-implementations of what LeRobot's and openpi's programs do, with everything in their favour that costs them nothing: the
loop runs in its own thread (under SCHED_FIFO where allowed) and never waits for an inference, which has another thread; absolute
deadlines; chunks are asked for ahead of time. What is theirs is how a model comes in:

* ``between``: LeRobot's policy server on new policy instructions: ``from_pretrained`` where the old policy ran, between two
  chunks; one model in memory, so that going back is another load;
* ``thread``: ``from_pretrained`` in a thread while the old policy acts, then the pointer moves; the old model is kept;
* ``restart``: openpi, OpenVLA-OFT, GR00T: the model is fixed at start; ``swap.py`` ends this process and starts it anew.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from benchmarks.processes import answer, say
from benchmarks.robot import pictures, taking
from benchmarks.transformer import STATE, TransformerPolicy
from benchmarks.transformer.model import Transformer, TransformerConfig
from vla_policy_node.control.counters import Counters
from vla_policy_node.control.realtime import take_fifo
from vla_policy_node.control.schedule import Schedule
from vla_policy_node.control.sinks import RecordSink

Chunk = npt.NDArray[np.float32]
_MARGIN_TICKS = 4


@dataclass(frozen=True)
class Loaded:
    """A policy and where it came from."""

    policy: TransformerPolicy
    folder: str


@dataclass(frozen=True)
class Plan:
    """A chunk whose action 0 is due at ``start``, counted in actions taken."""

    start: int
    actions: Chunk
    source: Loaded


def from_pretrained(folder: str) -> Loaded:
    """Load as LeRobot and transformers do by default: read the configuration, build the module, copy the weights into it."""
    config = TransformerConfig.from_json(json.loads((Path(folder) / "config.json").read_text()))
    model = Transformer(config)
    safetensors.torch.load_model(model, str(Path(folder) / "model.safetensors"), strict=True)
    return Loaded(TransformerPolicy(model.eval().requires_grad_(False)), folder)


class Peer:
    """A control loop in a thread, an inference thread, and a pointer to the policy that acts."""

    def __init__(self, loaded: Loaded, rate_hz: float, record: str, fifo: bool) -> None:
        self.loaded = loaded
        self.load_at_boundary = ""  # a folder that the loop is to load by itself
        self.load_s = 0.0  # how long that took
        self.at_once = False  # the next chunk takes over as soon as it is there
        self.acting = ""  # folder of the policy whose action went out last
        self.acted_s = 0.0  # when that policy's first action went out
        self._period_ns = round(1e9 / rate_hz)
        self._sink, self._fifo = RecordSink(record), fifo
        self._window = Counters()
        self._asked: int | None = None
        self._wake = threading.Condition()
        self._answer: Plan | None = None
        self._latency_ns = 0
        self._over = False
        self._threads = [threading.Thread(target=self._infer), threading.Thread(target=self._loop)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the loop."""
        self._over = True
        with self._wake:
            self._wake.notify()
        for thread in self._threads:
            thread.join(10.0)
        self._sink.close()

    def begin_window(self) -> None:
        """Count anew."""
        self._window = Counters()

    def counts(self) -> dict[str, float]:
        """Return what was counted since."""
        window = self._window
        return {"missed": window.missed, "starved": window.starved, "worst_ms": window.worst_late_ns / 1e6}

    def wait_acting(self, folder: str, timeout_s: float = 30.0) -> None:
        """Wait until that policy acts."""
        deadline = time.monotonic() + timeout_s
        while self.acting != folder:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{folder} does not act")
            time.sleep(0.002)

    def _infer(self) -> None:
        while not self._over:
            with self._wake:
                self._wake.wait_for(lambda: self._asked is not None or self._over)
                asked = self._asked
            if asked is None:
                return
            begin_ns, source = time.monotonic_ns(), self.loaded
            actions = source.policy.predict_chunk({STATE: self._state}, "reach the red block")
            self._latency_ns = time.monotonic_ns() - begin_ns
            self._answer, self._asked = Plan(asked, actions, source), None

    def _loop(self) -> None:
        if self._fifo:
            take_fifo(10)
        self._state = np.zeros(self.loaded.policy.spec.action_dim, np.float32)
        self._plan, self._boundary = 0, 0
        self._current: Plan | None = None
        schedule = Schedule(self._period_ns, time.monotonic_ns() + self._period_ns)
        while not self._over:
            left_ns = schedule.deadline_ns - time.monotonic_ns()
            if left_ns > 0:
                time.sleep(left_ns / 1e9)
            starved = not self._act()
            late_ns, skipped = schedule.finish(time.monotonic_ns())
            self._window.add(late_ns, self._period_ns, skipped, starved=starved, clamped=False)
            if self._current is None and self.acting == "":
                schedule.resync(time.monotonic_ns())  # nothing was due before the first chunk
            self._ask()
            if self.load_at_boundary and self._plan >= self._boundary:
                begin_s = time.monotonic()
                self.loaded, self.load_at_boundary = from_pretrained(self.load_at_boundary), ""
                self._answer, self.at_once, self.load_s = None, True, time.monotonic() - begin_s

    def _act(self) -> bool:
        """Put the next action out, the last one again if there is none; return whether there was one."""
        answer = self._answer
        if answer is not None and (self._plan >= self._boundary or self.at_once):
            self._answer = None
            if answer.source is self.loaded or not self.at_once:
                self._current, self.at_once = answer, False
                self._boundary = self._plan + answer.source.policy.spec.execute
        current = self._current
        if current is None or self._plan - current.start >= len(current.actions):
            if current is not None:
                self._sink.publish(self._state.astype(np.float64))
            return current is None
        self._state = current.actions[self._plan - current.start]
        self._sink.publish(self._state.astype(np.float64))
        self._plan += 1
        if self.acting != current.source.folder:
            self.acted_s, self.acting = time.monotonic(), current.source.folder
        return True

    def _ask(self) -> None:
        early = math.ceil(self._latency_ns / self._period_ns) + _MARGIN_TICKS
        if self._asked is None and self._answer is None and (self.at_once or self._plan >= self._boundary - early):
            with self._wake:
                self._asked = self._plan
                self._wake.notify()


class Program:
    """What the driver can ask for."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings, self._way = settings, settings["way"]
        torch.set_num_threads(1)
        self._pictures = pictures(settings["cameras"])
        self._peer = self._start(from_pretrained(settings["folder"]), settings["rate_hz"])
        self._before: Loaded | None = None

    def _start(self, loaded: Loaded, rate_hz: float) -> Peer:
        path = self._settings["record"]
        peer = Peer(loaded, rate_hz, path, self._settings["fifo"])
        peer.wait_acting(loaded.folder)
        return peer

    def idle(self, watch_s: float) -> dict[str, float]:
        """Count for a while in which nothing is replaced."""
        self._peer.begin_window()

        def count() -> dict[str, float]:
            time.sleep(watch_s)
            return self._peer.counts()

        return taking(self._pictures, count)

    def restart_loop(self, folder: str, rate_hz: float) -> dict[str, float]:
        """Begin again at another rate, with another policy (not measured)."""
        self._peer.close()
        self._before = None
        self._peer = self._start(from_pretrained(folder), rate_hz)
        return {}

    def swap(self, folder: str, watch_s: float) -> dict[str, float]:
        """Replace the policy by the one on disk; count until ``watch_s`` after its first action."""
        peer, begin_s = self._peer, self._begin()
        self._before = peer.loaded
        if self._way == "between":
            self._before = None
            peer.load_at_boundary = folder
            found = self._end(folder, begin_s, watch_s)
            return {**found, "load_ms": peer.load_s * 1e3}
        loaded = from_pretrained(folder)
        loaded_s = time.monotonic()
        loaded.policy.predict_chunk({STATE: np.zeros(loaded.policy.spec.action_dim, np.float32)}, "")
        warm_s = time.monotonic()
        peer.loaded = loaded
        found = self._end(folder, begin_s, watch_s)
        return {**found, "load_ms": (loaded_s - begin_s) * 1e3, "warm_up_ms": (warm_s - loaded_s) * 1e3}

    def rollback(self, folder: str, watch_s: float) -> dict[str, float]:
        """Go back to the policy before as fast as this way can."""
        peer, begin_s = self._peer, self._begin()
        if self._before is not None:
            peer.loaded = self._before
            peer.at_once = True
        else:
            peer.load_at_boundary = folder
        return self._end(folder, begin_s, watch_s)

    def close(self) -> None:
        """End."""
        self._peer.close()
        if self._pictures is not None:
            self._pictures.close()

    def _begin(self) -> float:
        self._peer.begin_window()
        return time.monotonic()

    def _end(self, folder: str, begin_s: float, watch_s: float) -> dict[str, float]:
        self._peer.wait_acting(folder)
        acted_s = self._peer.acted_s
        time.sleep(watch_s)
        return {"acted_ms": (acted_s - begin_s) * 1e3, **self._peer.counts()}


def main() -> None:
    """``python -m benchmarks.swap_peers '{"way", "folder", "rate_hz", "record", "fifo", "cameras"}'``."""
    program = Program(json.loads(sys.argv[1]))
    say(acted_s=program._peer.acted_s)
    answer(program)
    program.close()


if __name__ == "__main__":
    main()
