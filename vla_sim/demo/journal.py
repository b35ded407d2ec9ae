# SPDX-License-Identifier: Apache-2.0
"""What the nodes reported during the demo, in order, with waits that end. No ROS: the driver's node fills it.

The records carry the fields of the messages under their names; ``at_s`` is the message's stamp [s since 1970].
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

POLICY_RUNNING, POLICY_HOLDING = 2, 3
"""``PolicyStatus.STATE_RUNNING`` and ``STATE_HOLDING``; a test holds them equal."""


@dataclass(frozen=True)
class PolicyStatus:
    """See ``msg/PolicyStatus.msg``."""

    at_s: float
    state: int
    active_version: str
    generation: int
    standby_version: str
    on_trial: bool
    hold_reason: str
    control_rate_hz: float
    ticks: int
    missed_ticks: int
    starved_ticks: int
    worst_late_ms: float

    @property
    def running(self) -> bool:
        """A policy commands the robot."""
        return self.state == POLICY_RUNNING

    @property
    def holding(self) -> bool:
        """The robot is held."""
        return self.state == POLICY_HOLDING


@dataclass(frozen=True)
class SwapReport:
    """See ``msg/SwapReport.msg``; ``at_s`` is the first action of the new generation."""

    at_s: float
    from_version: str
    to_version: str
    cause: str
    at: str
    warm: bool
    load_s: float
    digest_s: float
    golden_s: float
    warm_up_s: float
    swap_latency_s: float
    missed_ticks: int
    starved_ticks: int
    worst_late_ms: float
    seam_jump: float
    typical_step: float
    seam_channel: str
    tick_histogram: tuple[int, ...]


@dataclass(frozen=True)
class ModelStatus:
    """See ``msg/ModelStatus.msg``."""

    at_s: float
    state_name: str
    update_id: str
    committed_version: str
    previous_version: str
    trial_version: str
    active_version: str
    bytes_done: int
    bytes_total: int
    bytes_downloaded: int
    trial_progress: float
    trial_message: str
    blocked: tuple[str, ...]
    rollback_ready: int
    error_code: str
    message: str


@dataclass(frozen=True)
class ModelEvent:
    """See ``msg/ModelEvent.msg``."""

    at_s: float
    update_id: str
    from_state: str
    to_state: str
    version: str
    error_code: str
    message: str


@dataclass(frozen=True)
class EpisodeOutcome:
    """See ``msg/EpisodeOutcome.msg``."""

    at_s: float
    episode_id: str
    version: str
    mixed: bool
    success: bool
    known: bool
    intervention: bool


@dataclass(frozen=True)
class Offer:
    """A ModelUpdate that the demo published."""

    at_s: float
    update_id: str
    version: str


@dataclass(frozen=True)
class RollbackReply:
    """What ``ota_manager/rollback`` answered; ``at_s`` is the request."""

    at_s: float
    success: bool
    error_code: str
    message: str
    from_version: str
    to_version: str
    duration_s: float
    warm: bool


@dataclass(frozen=True)
class Killed:
    """A process that the demo killed with SIGKILL."""

    at_s: float
    what: str


@dataclass(frozen=True)
class CommandGap:
    """A time without commands to the arm, by the publisher's own stamps; ``at_s`` is its beginning."""

    at_s: float
    duration_s: float


Record = (
    PolicyStatus | SwapReport | ModelStatus | ModelEvent | EpisodeOutcome | Offer | RollbackReply | Killed | CommandGap
)
_R = TypeVar("_R", bound=Record)


def from_message(kind: type[_R], message: Any, at_s: float) -> _R:
    """Make a record of a message: fields are copied by their names, lists become tuples."""
    values: dict[str, Any] = {"at_s": at_s}
    for field in dataclasses.fields(kind):
        if field.name != "at_s":
            value = getattr(message, field.name)
            values[field.name] = value if isinstance(value, str | int | float) else tuple(value)
    return kind(**values)


class WaitError(Exception):
    """What was waited for did not come; the message says what."""


class Journal:
    """Everything that was reported, oldest first (thread-safe).

    Args:
        on_record: called with each record, in the order of their arrival.
    """

    def __init__(self, on_record: Callable[[Record], None] = lambda record: None) -> None:
        self._on_record = on_record
        self._records: list[Record] = []
        self._changed = threading.Condition()
        self.commands = 0
        """Commands that the arm was sent."""
        self.give_up: Callable[[], str] = lambda: ""
        """Asked while waiting; a reason ends the wait."""

    def add(self, record: Record) -> None:
        """Take a record in."""
        with self._changed:
            self._records.append(record)
            self._on_record(record)
            self._changed.notify_all()

    def all(self, kind: type[_R]) -> list[_R]:
        """All records of a kind."""
        with self._changed:
            return [record for record in self._records if isinstance(record, kind)]

    def last(self, kind: type[_R]) -> _R | None:
        """The newest record of a kind."""
        records = self.all(kind)
        return records[-1] if records else None

    def wait(
        self, kind: type[_R], accept: Callable[[_R], bool], what: str, timeout_s: float, *, since_s: float = 0.0
    ) -> _R:
        """Return the first record of a kind, not older than ``since_s``, that ``accept`` likes.

        Raises WaitError after ``timeout_s``, or when ``give_up`` says so.
        """
        deadline, seen = time.monotonic() + timeout_s, 0
        with self._changed:
            while True:
                for record in self._records[seen:]:
                    if isinstance(record, kind) and record.at_s >= since_s and accept(record):
                        return record
                seen = len(self._records)
                if reason := self.give_up():
                    raise WaitError(f"waited for {what}: {reason}")
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise WaitError(f"waited {timeout_s:g} s in vain for {what}")
                self._changed.wait(min(left_s, 0.5))
