# SPDX-License-Identifier: Apache-2.0
"""The newest observation: messages in, one record of the observation arena out."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import Align, Contract
from vla_policy_node.decoding import Decoder, Floats
from vla_policy_node.errors import ObservationError
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.layouts import INSTRUCTION_BYTES, OBSERVATION_HZ, OBSERVATION_SLOTS, observation_layout
from vla_policy_node.pictures import Image

_FUTURE_TOLERANCE_NS = 500_000_000
_NUMBERS_KEPT = 128
"""Records whose numbers can be asked for later: more than two seconds."""


@dataclass
class _Slot:
    """The newest message of one source."""

    decoder: Decoder
    align: Align
    value: Floats | Image | None = None
    taken_ns: int = 0  # monotonic time of its timeline: when it was received, or stamped


def encode_instruction(instruction: str) -> npt.NDArray[np.uint8]:
    """Return the task in words as the observation's record holds it. Raises ObservationError INSTRUCTION_TOO_LONG."""
    data = instruction.encode(errors="replace")
    if len(data) > INSTRUCTION_BYTES or b"\0" in data:
        text = f"the instruction has {len(data)} bytes of UTF-8, at most {INSTRUCTION_BYTES}, none of them zero"
        raise ObservationError("INSTRUCTION_TOO_LONG", text)
    padded = np.zeros(INSTRUCTION_BYTES, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return padded


class ObservationBuffer:
    """Keeps the newest message of each source and writes the arena. Thread-safe; the arena's only writer.

    Call :meth:`receive` from the subscriptions' callbacks and :meth:`publish` at the control rate.
    """

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        layout = observation_layout(contract.features, len(contract.channels))
        self.arena = Arena.create(layout, OBSERVATION_SLOTS, name="vla_observation")
        self._lock = threading.Lock()
        self._closed = False
        self._slots = {
            (o.key, i): _Slot(Decoder(s), s.align) for o in contract.observations for i, s in enumerate(o.sources)
        }
        self._motion_ns = 0
        self._episode = 0
        self._instruction = np.zeros(INSTRUCTION_BYTES, np.uint8)
        self._measured_at = [self._place(c.measured) for c in contract.channels]
        self._numbers: deque[tuple[int, Floats]] = deque(maxlen=_NUMBERS_KEPT)

    def receive(self, key: str, source: int, message: Any, *, ros_now_ns: int = 0, now_ns: int | None = None) -> None:
        """Take in a message of ``contract.observations[key].sources[source]``.

        ``ros_now_ns``: the ROS clock now, for sources aligned by their header. Raises :class:`ObservationError`; the
        message before then stays, and ages.
        """
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        slot = self._slots[key, source]
        taken_ns = now_ns
        if slot.align.timeline == "header":
            taken_ns -= self._header_age(key, message, ros_now_ns)
        value = slot.decoder.read(message)
        with self._lock:
            slot.value, slot.taken_ns = value, taken_ns

    def set_motion(self, enabled: bool, now_ns: int | None = None) -> None:
        """``motion_enabled`` has come: true permits motion until the contract's timeout, false forbids it until a true."""
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        with self._lock:
            soon_ns = now_ns + int(2e9 * max(self.contract.period_s, 1 / OBSERVATION_HZ))
            outlasted = self._motion_ns > soon_ns  # the next record renews it: each takes the place of one in a history
            self._motion_ns = now_ns + int(self.contract.motion.timeout_s * 1e9) if enabled else -1
            if not (enabled and outlasted):
                self._write(now_ns)

    def motion_permitted(self, now_ns: int | None = None) -> bool:
        """Whether motion is permitted (see :meth:`Motion.permits`)."""
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        return self.contract.motion.permits(self._motion_ns, now_ns)

    def start_episode(self, instruction: str) -> int:
        """Set the task in words and count a new episode. Raises ObservationError INSTRUCTION_TOO_LONG."""
        encoded = encode_instruction(instruction)
        with self._lock:
            self._instruction = encoded
            self._episode += 1
            self._write(time.monotonic_ns())
            return self._episode

    def set_instruction(self, instruction: str) -> None:
        """Set the task in words without a new episode. Raises ObservationError INSTRUCTION_TOO_LONG."""
        encoded = encode_instruction(instruction)
        with self._lock:
            self._instruction = encoded

    def close(self) -> None:
        """Close the arena; what comes afterwards is written nowhere."""
        with self._lock:
            if not self._closed:
                self.arena.close()
            self._closed = True

    def publish(self, now_ns: int | None = None) -> bool:
        """Write a record from the newest messages; return whether it is complete and fresh."""
        with self._lock:
            return self._write(time.monotonic_ns() if now_ns is None else now_ns)

    def numbers(self) -> dict[int, Floats]:
        """Return what the last valid records had beside pictures, by sequence number of the arena.

        ``[S]``: the features that are no pictures one after the other, in the contract's order.
        """
        with self._lock:
            return dict(self._numbers)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _header_age(self, key: str, message: Any, ros_now_ns: int) -> int:
        stamp = message.header.stamp
        stamp_ns = int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
        if stamp_ns == 0:
            raise ObservationError(
                "OBSERVATION_UNSTAMPED", f"{key}: the header has no stamp; align by `timeline: receive`"
            )
        age_ns = ros_now_ns - stamp_ns
        if age_ns < -_FUTURE_TOLERANCE_NS:
            text = f"{key}: stamped {-age_ns / 1e9:.1f} s in the future; are the clocks in step?"
            raise ObservationError("OBSERVATION_CLOCK", text)
        return max(0, age_ns)

    def _max_age_ns(self, slot: _Slot) -> int:
        contract_ns = int(self.contract.observation_max_age_s * 1e9)
        if slot.align.tolerance_ms is not None:
            return min(contract_ns, int(slot.align.tolerance_ms * 1e6))
        return min(contract_ns, int(self.contract.period_s * 1e9)) if slot.align.strategy == "drop" else contract_ns

    def _is_fresh(self, slot: _Slot, now_ns: int) -> bool:
        return slot.value is not None and now_ns - slot.taken_ns <= self._max_age_ns(slot)

    def _place(self, measured: tuple[str, int] | None) -> tuple[tuple[str, int], int] | None:
        """Return source and index within it of a measured value."""
        if measured is None:
            return None
        key, index = measured
        observation = next(o for o in self.contract.observations if o.key == key)
        for i, source in enumerate(observation.sources):
            if index < len(source.select):
                return (key, i), index
            index -= len(source.select)
        raise AssertionError("the parser found it")

    def _write(self, now_ns: int) -> bool:
        valid = all(self._is_fresh(slot, now_ns) for slot in self._slots.values())
        measured = np.full(len(self._measured_at), np.nan)
        measured_ns = now_ns
        for i, place in enumerate(self._measured_at):
            slot = None if place is None else self._slots[place[0]]
            if place is not None and slot is not None and slot.value is not None:
                measured[i] = slot.value[place[1]]
                measured_ns = min(measured_ns, slot.taken_ns)
        record: dict[str, Any] = {
            "stamp_ns": min(slot.taken_ns for slot in self._slots.values()),
            "written_ns": now_ns,
            "valid": int(valid),
            "measured": measured,
            "measured_ns": measured_ns,
            "motion_ns": self._motion_ns,
            "instruction": self._instruction,
            "episode": self._episode,
        }
        for observation in self.contract.observations:
            record[f"feature:{observation.key}"] = self._feature(observation.key, len(observation.sources))
        if not self._closed:
            sequence = self.arena.write(record)
            if valid:
                states = [record[f"feature:{o.key}"] for o in self.contract.observations if not o.is_image]
                self._numbers.append((sequence, np.concatenate([np.empty(0), *states])))
        return valid

    def _feature(self, key: str, sources: int) -> Any:
        values = [self._slots[key, i].value for i in range(sources)]
        if any(v is None for v in values):
            return 0  # the record is not valid
        return values[0] if sources == 1 else np.concatenate([v for v in values if v is not None])
