# SPDX-License-Identifier: Apache-2.0
"""The loop in time: wait for the deadline, tick, publish, count, tell, listen. Ends when the node has gone."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from vla_policy_node.contract.model import Contract
from vla_policy_node.control.commands import Commands
from vla_policy_node.control.counters import Counters, Spans
from vla_policy_node.control.events import EventQueue
from vla_policy_node.control.loop import ControlLoop, Look
from vla_policy_node.control.schedule import Schedule
from vla_policy_node.control.sinks import CommandSink
from vla_policy_node.control.swap import seam, swapped_event
from vla_policy_node.holds import HOLD_REASONS
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.channel import Channel, ChannelClosedError
from vla_policy_node.ipc.layouts import MODES

_LOOKED_AT = ("stamp_ns", "valid", "measured", "measured_ns", "motion_ns", "episode")  # in the layout's order
_MESSAGES_A_TICK = 8
_SPAN_AFTER_SWAP_NS = 1_000_000_000
_MODE = {name: i for i, name in enumerate(MODES)}
_REASON = {name: i for i, name in enumerate(HOLD_REASONS)}


class Runner:
    """Owns the loop, its clock and its counts; nothing of it waits but :meth:`run` for the next deadline."""

    def __init__(
        self,
        contract: Contract,
        channel: Channel,
        observation: Arena,
        status: Arena,
        operator: Arena,
        sink: CommandSink,
    ) -> None:
        self._channel, self._observation, self._status, self._sink = channel, observation, status, sink
        self._operator = operator
        self._looked_at = observation.layout.packed(_LOOKED_AT)
        self._events = EventQueue(channel)
        self._loop = ControlLoop(contract, self._emit)
        self._counters, self._spans = Counters(), Spans()
        self._commands = Commands(self._loop, self._spans, sink.check)
        self._nowhere = np.full(len(contract.channels), np.nan)
        self._look = Look(0, False, self._nowhere, 0, 0, 0)
        self._stopping = False
        self._look_around_ticks = max(1, round(contract.rate_hz))
        self._next_look_around = 0

    def stop(self) -> None:
        """End :meth:`run` before its next tick; safe in a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Tick until it is stopped. Raises ChannelClosedError when the node has gone."""
        period_ns = self._loop.period_ns
        schedule = Schedule(period_ns, time.monotonic_ns() + period_ns)
        while True:
            commanding = self._loop.enabled
            self._listen(time.monotonic_ns())
            if self._stopping:
                return
            now_ns = time.monotonic_ns()
            if not (commanding and self._loop.enabled):  # nothing was due while it looked for other publishers either
                schedule.resync(now_ns - period_ns)
            if schedule.deadline_ns > now_ns:
                time.sleep((schedule.deadline_ns - now_ns) / 1e9)
            self._tick(schedule)
            self._events.flush()

    def _tick(self, schedule: Schedule) -> None:
        loop, tick = self._loop, schedule.tick
        command = loop.tick(time.monotonic_ns(), tick, self._observe())
        if command is not None:
            self._sink.publish(command)
        done_ns = time.monotonic_ns()
        late_ns, skipped = schedule.finish(done_ns)
        if not loop.enabled or loop.motion_disabled:
            late_ns = skipped = 0  # no command was due
        self._counters.add(late_ns, schedule.period_ns, skipped, starved=loop.starved, clamped=loop.clamped)
        spans = self._spans
        if spans.any_open:
            spans.add(late_ns, schedule.period_ns, skipped, starved=loop.starved, clamped=loop.clamped)
        self._report_swap(done_ns)
        if spans.any_open:
            for span_id, counts in spans.ended(done_ns):
                self._events.put({"type": "SPAN", "span_id": span_id, **counts.to_json()})
        self._write_status(tick, done_ns, published=command is not None)
        if tick >= self._next_look_around:
            self._next_look_around = tick + self._look_around_ticks
            self._look_around()

    def _look_around(self) -> None:
        """Stop if another node commands the robot; done after the command is out."""
        text = self._sink.intruder() if self._loop.enabled else ""
        if text:
            self._loop.latch("COMMAND_TOPIC_TAKEN", text=text)
            self._loop.stand_still()

    def _observe(self) -> Look:
        new = self._observation.newest != self._look.observation
        read = self._observation.read_packed(self._looked_at) if new else None
        if read is not None:  # else: nothing new, or being overwritten; the last look serves, and ages
            seq, (stamp_ns, valid, measured, measured_ns, motion_ns, episode) = read
            self._look = Look(stamp_ns, bool(valid), np.frombuffer(measured), measured_ns, motion_ns, episode, seq)
        operated = self._operator.read() if self._loop.operator.on else None
        if operated is None:
            return self._look
        return self._look._replace(operator=operated[1]["action"], operator_ns=int(operated[1]["received_ns"]))

    def _report_swap(self, now_ns: int) -> None:
        loop = self._loop
        if loop.swapped is None:
            return
        (swap, previous, before), loop.swapped = loop.swapped, None
        event = swapped_event(swap, previous, loop.tick_number, now_ns)
        if loop.mode == "RUNNING" and loop.command is not None and previous != swap.generation.id:
            channel, jump = seam(before, loop.command, loop.limiter.step)
            name = loop.contract.channels[channel].name
            typical = loop.commanded.history.typical_step(channel)
            event |= {"acted": True, "seam_jump": jump, "seam_channel": name, "typical_step": typical}
        counts = self._spans.get(swap.swap_id)
        self._events.put({**event, **(counts or Counters()).to_json()})
        self._spans.end(swap.swap_id, now_ns + _SPAN_AFTER_SWAP_NS)

    def _emit(self, event: dict[str, Any]) -> None:
        self._events.put(event)
        if event["type"] == "SWAP_FAILED":
            self._spans.end(event["swap_id"], self._loop.now_ns)

    def _write_status(self, tick: int, now_ns: int, *, published: bool) -> None:
        loop, counters, command = self._loop, self._counters, self._loop.command
        self._status.write_packed(  # in the order of control_status_layout
            tick,
            now_ns,
            _MODE[loop.mode],
            bool(loop.reasons.latched),
            0 if loop.running else _REASON[loop.reasons.reason],
            loop.generation,
            counters.ticks,
            counters.missed,
            counters.starved,
            counters.clamped,
            counters.worst_late_ns,
            counters.histogram.tobytes(),
            (self._nowhere if command is None else command).tobytes(),
            loop.chunks,
            published,
            (self._nowhere if loop.policy_action is None else loop.policy_action).tobytes(),
            self._look.observation,
            self._look.episode,
        )

    def _listen(self, now_ns: int) -> None:
        for _ in range(_MESSAGES_A_TICK):
            try:
                received = self._channel.receive(0.0)
            except ChannelClosedError:
                raise
            except (ValueError, RecursionError) as e:  # not JSON
                self._commands.apply(f"{type(e).__name__}", (), now_ns)
                continue
            if received is None:
                return
            message, fds = received
            if isinstance(message, dict) and message.get("type") == "stop":
                self._stopping = True
                return
            self._commands.apply(message, fds, now_ns)
            self._report_swap(now_ns)
