# SPDX-License-Identifier: Apache-2.0
"""What the nodes reported during the demo, in order, with waits that end: their messages, and what the demo itself did."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from vla_ota.srv import Rollback

from vla_ros.stamps import to_seconds

_R = TypeVar("_R")


@dataclass(frozen=True)
class RollbackReply:
    """What ``ota_manager/rollback`` answered; ``at_s`` is the request."""

    at_s: float
    reply: Rollback.Response


@dataclass(frozen=True)
class Killed:
    """A process that the demo killed with SIGKILL."""

    at_s: float
    what: str


def at_s(record: Any) -> float:
    """Return when a record was made: a message's stamp [s since 1970]."""
    return record.at_s if isinstance(record, RollbackReply | Killed) else to_seconds(record.header.stamp)


class WaitError(Exception):
    """What was waited for did not come; the message says what."""


class Journal:
    """Everything that was reported, oldest first (thread-safe).

    Args:
        on_record: called with each record, in the order of their arrival.
    """

    def __init__(self, on_record: Callable[[Any], None] = lambda record: None) -> None:
        self._on_record = on_record
        self._records: list[Any] = []
        self._changed = threading.Condition()
        self.commands: list[float] = []
        """When the arm was sent a command, by its publisher's own stamps [s since 1970]."""
        self.joints: list[tuple[float, list[float]]] = []
        """Time [s since 1970] and positions [rad]."""
        self.give_up: Callable[[], str] = lambda: ""
        """Asked while waiting; a reason ends the wait."""

    def add(self, record: Any) -> None:
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
                    if isinstance(record, kind) and at_s(record) >= since_s and accept(record):
                        return record
                seen = len(self._records)
                if reason := self.give_up():
                    raise WaitError(f"waited for {what}: {reason}")
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise WaitError(f"waited {timeout_s:g} s in vain for {what}")
                self._changed.wait(min(left_s, 0.5))
