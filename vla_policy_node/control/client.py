# SPDX-License-Identifier: Apache-2.0
"""The node's side of the control process: start it, give it generations, ask for swaps and holds, read its status."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import Contract
from vla_policy_node.control.swap import UPDATE
from vla_policy_node.errors import ControlError
from vla_policy_node.holds import HOLD_REASONS
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.channel import Channel, ChannelClosedError, ChannelFullError
from vla_policy_node.ipc.generation import GenerationHandle
from vla_policy_node.ipc.layouts import MODES, control_status_layout, operator_layout

Event = dict[str, Any]

AT = ("CHUNK", "EPISODE", "REST", "NOW")
_LEAST_STATUS_SLOTS, _STATUS_S, _OPERATOR_SLOTS = 64, 4.0, 4
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, eq=False)
class Tick:
    """One tick that published a command."""

    stamp_ns: int  # monotonic, when it was published
    command: npt.NDArray[np.float64]  # [C]
    policy_action: npt.NDArray[np.float64]  # [C] what the policy wanted, before limits; NaN = nothing
    generation: int  # that wanted it, or did so last
    operator: bool  # the command follows an operator's action
    observation: int  # sequence number of what was seen
    episode: int  # as that observation says


_TICK_FIELDS = ("stamp_ns", "command", "policy_action", "generation", "mode", "observation", "episode", "published")


def _tick(record: Mapping[str, npt.NDArray[Any]]) -> Tick:
    return Tick(
        int(record["stamp_ns"]),
        record["command"],
        record["policy_action"],
        int(record["generation"]),
        MODES[int(record["mode"])] == "OPERATOR",
        int(record["observation"]),
        int(record["episode"]),
    )


@dataclass(frozen=True)
class ControlStatus:
    """What the loop did on its last tick."""

    age_s: float  # since that tick; grows when the control process hangs
    tick: int  # counts deadlines, skipped ones included
    mode: str  # one of MODES
    latched: bool  # the hold ends only by resume (or the contract's auto_resume)
    hold_reason: str  # one of HOLD_REASONS, empty = not holding
    generation: int  # of the last action taken, 0 = none
    ticks: int
    missed: int
    starved: int
    clamped: int  # ticks on which a limit shortened the command
    worst_late_ms: float
    histogram: tuple[int, ...]  # ticks by lateness, bins of LATENESS_BOUNDS_MS
    chunks: int  # taken over from the acting generation since it became active
    command: npt.NDArray[np.float64]  # last one published, NaN = none since the last stop


class ControlClient:
    """Owns the control process. Methods may be called from any thread; they send and return, answers come as events.

    ``observation`` is the arena that the node writes (``observation_layout``). ``sink`` says where commands go:
    ``{"kind": "ros", "node_name", "namespace", "domain_id", "topics": {contract topic: resolved name}, "arguments": for ROS}``,
    ``{"kind": "nowhere"}`` for a policy in shadow, or, for tests and dry runs, ``{"kind": "record", "path"}``. ``on_event`` is
    called on the client's own thread with each event (see ``control/events.py``), at last with
    ``{"type": "EXITED", "returncode"}``.
    """

    def __init__(
        self,
        contract: Contract,
        observation: Arena,
        *,
        sink: Mapping[str, Any],
        on_event: Callable[[Event], None],
        fifo_priority: int | None = 20,
        cpus: str = "",
    ) -> None:
        self._contract, self._observation, self._sink = contract, observation, dict(sink)
        self._on_event, self._fifo_priority, self._cpus = on_event, fifo_priority, cpus
        slots = max(_LEAST_STATUS_SLOTS, round(_STATUS_S * contract.rate_hz))  # who reads each tick may be late
        self._status: Arena | None = Arena.create(
            control_status_layout(len(contract.channels)), slots, "vla_control_status"
        )
        self._operator: Arena | None = Arena.create(
            operator_layout(len(contract.channels)), _OPERATOR_SLOTS, "vla_operator"
        )
        self._status_lock = threading.Lock()
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._sending = threading.Lock()
        self._first_answer = threading.Event()
        self._started: Event | None = None
        self._closing = False

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self, timeout_s: float = 10.0) -> Event:
        """Start the child and return its STARTED event (``pid, fifo, mlock, pinned``).

        Raises :class:`ControlError` with the child's code (COMMAND_TOPIC_LOCKED, CONTRACT_…), CONTROL_START_TIMEOUT, or CLOSED.
        """
        if self._channel is not None or self._status is None:
            raise ControlError("CONTROL_ALREADY_STARTED", "a client starts one process, once")
        self._channel, theirs = Channel.pair()
        path = os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vla_policy_node.control.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # no Ctrl-C of the node's terminal: the node decides what it means
            )
        except OSError as e:
            self.close()
            raise ControlError("CONTROL_START_FAILED", f"{sys.executable}: {e}") from e
        finally:
            theirs.close()
        self._reader = threading.Thread(target=self._read, name="control-events", daemon=True)
        self._reader.start()
        status, operator = self._status, self._operator
        assert operator is not None  # closed with the status only
        self._send(
            {
                "type": "configure",
                "contract": self._contract.text,
                "contract_path": str(self._contract.path),
                "sink": self._sink,
                "fifo_priority": self._fifo_priority,
                "cpus": self._cpus,
                "observation": {"layout": self._observation.layout.to_json(), "slots": self._observation.slots},
                "status_slots": status.slots,
                "operator_slots": operator.slots,
            },
            [self._observation.fd, status.fd, operator.fd],
        )
        if not self._first_answer.wait(timeout_s):
            self.close(0.0)
            raise ControlError("CONTROL_START_TIMEOUT", f"the control process did not start within {timeout_s} s")
        if self._closing:
            raise ControlError("CLOSED", "closed while the control process started")
        answer = self._started or {}
        if answer.get("type") != "STARTED":
            self.close(1.0)
            code = str(answer.get("error_code") or "CONTROL_START_FAILED")
            raise ControlError(code, str(answer.get("message") or "the control process ended while it started"))
        return answer

    def close(self, timeout_s: float = 3.0) -> None:
        """End the child: nothing is published afterwards. Kills it if it does not end by itself in ``timeout_s``."""
        self._closing = True
        if self._process is not None:
            self._end(self._process, timeout_s)
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join(2.0)
        if self._channel is not None:
            self._channel.close()
        with self._status_lock:
            for arena in (self._status, self._operator):
                if arena is not None:
                    arena.close()
            self._status = self._operator = None

    def kill(self) -> None:
        """End the child at once: EXITED follows. Nothing is published afterwards."""
        if self._process is not None:
            self._process.kill()

    def _end(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        if timeout_s > 0:
            try:
                self._send({"type": "stop"})
                process.wait(timeout_s)
            except (ControlError, subprocess.TimeoutExpired):
                pass
        process.kill()
        process.wait()

    @property
    def alive(self) -> bool:
        """Whether the child runs (it may hang all the same: see :attr:`ControlStatus.age_s`)."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id of the child."""
        return None if self._process is None else self._process.pid

    # -- generations and swaps -------------------------------------------------------------------------------------

    def add_generation(
        self,
        handle: GenerationHandle,
        *,
        latency_s: float = 0.0,
        limits: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Make a loaded generation known. ``latency_s``: time from request to chunk measured in warm-up (a first guess).

        ``limits``: the bundle's own, one mapping a channel (keys of ``ChannelLimits``); they can only tighten.
        """
        fields, fds = handle.to_message()
        message = {"type": "add_generation", "handle": fields, "latency_s": latency_s}
        self._send({**message, "limits": None if limits is None else [dict(x) for x in limits]}, fds)

    def remove_generation(self, generation: int) -> None:
        """Forget a generation. If it is the acting one: hold WORKER_LOST, latched; a pending swap to it fails."""
        self._send({"type": "remove_generation", "generation": generation})

    def activate(self, generation: int, at: str, swap_id: str, timeout_s: float, cause: str = UPDATE) -> None:
        """Ask for a swap at ``at`` (one of AT). The answer is an event SWAPPED or SWAP_FAILED with ``swap_id``.

        ``cause``: one of ``swap.WAYS_BACK``, or UPDATE, which is refused while motion is disabled.
        """
        if at not in AT:
            raise ControlError("SWAP_BOUNDARY_UNKNOWN", f"at={at!r}, must be one of {', '.join(AT)}")
        message: dict[str, Any] = {"type": "activate", "generation": generation, "at": at, "swap_id": swap_id}
        message |= {"timeout_s": timeout_s, "cause": cause}
        self._send({**message, "asked_ns": time.monotonic_ns(), "episode": self._episode()})

    def vacate(self, at: str, swap_id: str, timeout_s: float, cause: str) -> None:
        """Let the acting generation leave at ``at`` (EPISODE, REST or NOW); the loop holds LOADING_IN_PLACE from then on.

        The answer is an event VACATED or SWAP_FAILED with ``swap_id``. The hold ends with the next activation, or by
        :meth:`loading_failed`.
        """
        message = {"type": "vacate", "at": at, "swap_id": swap_id, "timeout_s": timeout_s, "cause": cause}
        self._send({**message, "episode": self._episode()})

    def loading_failed(self) -> None:
        """Nothing could be loaded in the place that was made: hold NO_POLICY, until a policy and a resume come."""
        self._send({"type": "loading_failed"})

    def _episode(self) -> int:
        """Return the episode that the loop sees or is about to: it may hear of one before it reads a message."""
        seen = self._observation.read(["episode"])
        return int(seen[1]["episode"]) if seen is not None else 0

    def cancel_activation(self, swap_id: str) -> None:
        """Take a pending swap back: SWAP_FAILED CANCELLED, unless it has happened already."""
        self._send({"type": "cancel_activation", "swap_id": swap_id})

    def begin_span(self, span_id: str) -> None:
        """Start counting missed, starved and late ticks under this name (a swap's preparation)."""
        self._send({"type": "begin_span", "span_id": span_id})

    def end_span(self, span_id: str, after_s: float = 0.0) -> None:
        """End the span ``after_s`` from now; its counts come as an event SPAN."""
        self._send({"type": "end_span", "span_id": span_id, "after_s": after_s})

    # -- motion ----------------------------------------------------------------------------------------------------

    def enable(self, enabled: bool) -> None:
        """Lifecycle active or inactive. Answer: ENABLED, DISABLED or ENABLE_FAILED (COMMAND_TOPIC_TAKEN)."""
        self._send({"type": "enable", "enabled": enabled})

    def set_episode_missing(self, missing: bool) -> None:
        """Hold NO_EPISODE, or end that hold."""
        self._send({"type": "episode_missing", "missing": missing})

    def resume(self) -> None:
        """End a latched hold. Answer: RESUME_ACCEPTED or RESUME_REFUSED."""
        self._send({"type": "resume"})

    def take_over(self, on: bool) -> None:
        """Command an operator's actions (see :meth:`operate`), or the policy's again. Answer: TAKEN_OVER or GIVEN_BACK."""
        self._send({"type": "take_over", "on": on})

    def operate(self, action: npt.NDArray[np.float64], received_ns: int) -> None:
        """Hand over an operator's newest action ``[C]``, in the contract's units. Call it from one thread at a time."""
        with self._status_lock:
            if self._operator is not None:
                self._operator.write({"action": action, "received_ns": received_ns})

    def status(self) -> ControlStatus | None:
        """Return the status of the last tick; ``None`` before the first and after :meth:`close`."""
        with self._status_lock:
            record = None if self._status is None else self._status.read()
        if record is None:
            return None
        r = record[1]
        return ControlStatus(
            age_s=(time.monotonic_ns() - int(r["stamp_ns"])) / 1e9,
            tick=int(r["tick"]),
            mode=MODES[int(r["mode"])],
            latched=bool(r["latched"]),
            hold_reason=HOLD_REASONS[int(r["hold_reason"])],
            generation=int(r["generation"]),
            ticks=int(r["ticks"]),
            missed=int(r["missed"]),
            starved=int(r["starved"]),
            clamped=int(r["clamped"]),
            worst_late_ms=int(r["worst_late_ns"]) / 1e6,
            histogram=tuple(int(n) for n in r["histogram"]),
            chunks=int(r["chunks"]),
            command=r["command"],
        )

    def ticks(self, after: int) -> tuple[int, list[Tick]]:
        """Return the newest tick's sequence number, and the ticks since ``after`` that published a command.

        Those of the last seconds (four) are there still. ``after`` 0: only the number is asked for.
        """
        with self._status_lock:
            if self._status is None:
                return after, []
            newest, oldest = self._status.newest, self._status.newest - self._status.slots + 2
            wanted = range(max(after + 1, oldest, 1), newest + 1) if after else ()
            records = [self._status.read(_TICK_FIELDS, seq=sequence) for sequence in wanted]
        return newest, [_tick(r[1]) for r in records if r is not None and r[1]["published"]]

    # -- inside ----------------------------------------------------------------------------------------------------

    def _send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if self._channel is None:
            raise ControlError("CONTROL_NOT_STARTED", "the control process was not started")
        try:
            with self._sending:
                self._channel.send(message, fds, block=False)
        except ChannelFullError as e:
            raise ControlError("CONTROL_UNRESPONSIVE", "the control process does not read its channel") from e
        except (ChannelClosedError, OSError) as e:
            raise ControlError("CONTROL_LOST", "the control process has ended") from e

    def _read(self) -> None:
        assert self._channel is not None and self._process is not None
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        while True:
            poll.poll()
            try:
                received = self._channel.receive(0.0)
            except (ChannelClosedError, json.JSONDecodeError, UnicodeDecodeError):
                break
            if received is None:
                continue
            event, fds = received
            for fd in fds:
                os.close(fd)
            if not self._first_answer.is_set():
                self._started = event
                self._first_answer.set()
            self._on_event(event)
        try:
            self._process.wait(2.0)  # its socket is closed: it is ending
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        event = {"type": "EXITED", "returncode": self._process.returncode, "expected": self._closing}
        if not self._first_answer.is_set():
            self._started = event
            self._first_answer.set()
        self._on_event(event)
