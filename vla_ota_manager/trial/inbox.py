# SPDX-License-Identifier: Apache-2.0
"""Scores and outcomes on their way from the topics to the judge. Anybody can publish there, so what is no evidence is dropped."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from vla_ota_manager.port import PolicySnapshot
from vla_ota_manager.records import EpisodeResult, Score

log = logging.getLogger("vla_ota_manager")

HARD_LIMIT_SOURCE = "hard_limit"
POLICY_SOURCES = frozenset({"tce", "reversal", "magnitude", HARD_LIMIT_SOURCE})
"""Sources that the policy node has; every other one is an external monitor's."""
_SIZE = 20_000
_EPISODES = 64
"""Open episodes whose outcome may still come; there is one at a time, and an outcome may get lost."""
_STATUS_S = 2.0
"""How long an outcome waits for the status that names its episode, which was published before it but may arrive later [s]."""
_WARNING_S = 5.0


@dataclass
class _Arrived:
    item: Score | EpisodeResult
    at_s: float
    counts: bool
    """False: an outcome of an episode that no status has named yet."""


class Inbox:
    """Takes in from any thread, hands out to the engine's. What is dropped is counted and logged.

    An outcome counts only for an episode that the policy node's status has named as open, and once. Each item is marked with the
    ``boot_id`` of the policy node that was alive when it arrived: generations are counted anew at each boot.
    """

    def __init__(self, status: Callable[[], PolicySnapshot | None]) -> None:
        self._status = status
        self._mutex = threading.Lock()
        self._items: deque[_Arrived] = deque(maxlen=_SIZE)
        self._boot_id = self._open = ""
        self._owed: dict[str, None] = {}
        """Episodes that were named and whose outcome has not come, oldest first."""
        self._next_warning = 0.0
        self.dropped, self.fault = 0, ""
        """How many scores and outcomes were no evidence, and why the last one was not."""

    def __len__(self) -> int:
        return len(self._items)

    def look(self) -> None:
        """Take note of the episode that is open; to be called once for every status of the policy node."""
        with self._mutex:
            snapshot = self._look_for_boot()
            if snapshot is not None and snapshot.episode_id != self._open:
                self._open = snapshot.episode_id
                if self._open:
                    self._expect(self._open)

    def _look_for_boot(self) -> PolicySnapshot | None:
        snapshot = self._status()
        if snapshot is not None and snapshot.boot_id != self._boot_id:
            self._boot_id, self._open = snapshot.boot_id, ""
            self._owed.clear()
        return snapshot

    def _expect(self, episode_id: str) -> None:
        """An episode was opened: its outcome, which may be here already, counts."""
        for arrived in self._items:
            if not arrived.counts and arrived.item.episode_id == episode_id:
                arrived.counts = True
                self._open = ""
                return
        self._owed[episode_id] = None
        while len(self._owed) > _EPISODES:
            del self._owed[next(iter(self._owed))]

    def put(self, item: Score | EpisodeResult) -> bool:
        """Take in a score or an outcome; false if it is no evidence of anything."""
        reason = unusable(item) if isinstance(item, Score) else ""
        with self._mutex:
            if reason:
                self._drop(reason)
                return False
            self._look_for_boot()
            counts = isinstance(item, Score) or item.episode_id in self._owed
            if isinstance(item, EpisodeResult) and counts:
                del self._owed[item.episode_id]
                if item.episode_id == self._open:
                    self._open = ""  # it is over: the next status that names it means another one of that name
            self._items.append(_Arrived(replace(item, boot_id=self._boot_id), time.monotonic(), counts))
        return True

    def drain(self) -> list[Score | EpisodeResult]:
        """Return what arrived since the last call. Outcomes of episodes that no status has named yet stay a little longer."""
        now = time.monotonic()
        ready: list[Score | EpisodeResult] = []
        with self._mutex:
            items, self._items = self._items, deque(maxlen=_SIZE)
            for arrived in items:
                if arrived.counts:
                    ready.append(arrived.item)
                elif now - arrived.at_s < _STATUS_S:
                    self._items.append(arrived)
                else:
                    name = arrived.item.episode_id[:64]
                    self._drop(f"policy_node opened no episode {name!r}, or its outcome has been taken in already")
        return ready

    def _drop(self, reason: str) -> None:
        self.dropped, self.fault = self.dropped + 1, reason
        now = time.monotonic()
        if now >= self._next_warning:
            self._next_warning = now + _WARNING_S
            log.warning("SCORE_INVALID: a score or an outcome was dropped: %s (%d so far)", reason[:200], self.dropped)


def unusable(score: Score) -> str:
    """Say why a score is no evidence of anything, "" if it may be one.

    Infinity or NaN rejects a version only if the policy node reports it of a generation of its own: a monitor that fails says
    nothing about the version. Only the policy node may report a broken hard limit.
    """
    by_policy_node = score.source in POLICY_SOURCES and score.generation > 0 and bool(score.version)
    if not score.source:
        return "it names no source"
    if score.source == HARD_LIMIT_SOURCE and not by_policy_node:
        return f"{HARD_LIMIT_SOURCE} is the policy node's, with version and generation"
    if not math.isfinite(score.value) and not by_policy_node:
        return f"{score.source} is {score.value}"
    return ""
