# SPDX-License-Identifier: Apache-2.0
"""Reads along what the acting generation is asked and answers, with the observation that each answer was made from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import Contract
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.generation import GenerationHandle

Floats = npt.NDArray[np.float64]
Record = dict[str, npt.NDArray[Any]]

_KEPT = 8  # observations while an answer is awaited; the worker reads one of the first


@dataclass(frozen=True, eq=False)
class Seen:
    """An observation, and what the incumbent made of it (``None``: there is no incumbent)."""

    record: Record
    earlier: Sequence[Record] = ()  # what the node wrote before it, oldest first, for a candidate with a history
    tick: int = 0  # plan tick that action 0 is meant for
    actions: Floats | None = None  # [H, C], relative channels made absolute


def made_absolute(contract: Contract, actions: npt.NDArray[np.float32], record: Record) -> Floats:
    """Return a chunk with the measured positions of its observation added where channels are relative."""
    relative = np.array([c.mode == "relative" for c in contract.channels])
    absolute: Floats = actions.astype(np.float64) + np.where(relative, record["measured"], 0.0)
    return absolute


class Feed(Protocol):
    """Where observations for a candidate come from. Called from one thread; never waits."""

    execute: int
    """Actions of a chunk that act."""

    def look(self) -> Seen | None:
        """Return an observation that the candidate may be asked about now, if there is a new one."""

    def close(self) -> None:
        """Forget the memory."""


class Incumbent:
    """What the acting generation was asked and has just answered: it pauses. Writes nothing that the generation reads."""

    def __init__(self, contract: Contract, handle: GenerationHandle, observation: Arena, history: int) -> None:
        """``history``: observations that the candidate looks back on."""
        self._contract, self._observation, self.execute = contract, observation, handle.execute
        self._history, self._back = history, 1 if history == 1 else observation.slots - 2
        self._requests, self._chunks = handle.attached()
        self._asked, self._answered = self._requests.newest, self._chunks.newest
        self._kept: dict[int, Record] = {}  # sequence number in the observation's arena -> copy
        self._waits = False  # it owes an answer

    def look(self) -> Seen | None:
        """Return the answer that has come since the last call, if its observation is known."""
        if self._requests.newest != self._asked:
            self._asked, self._waits = self._requests.newest, True
            self._kept.clear()
            for back in range(self._back, 0, -1):  # perhaps the newest came since the worker looked
                self._keep(self._observation.newest - back)
        if self._waits:
            self._keep(self._observation.newest)
        if self._chunks.newest == self._answered:
            return None
        self._answered = self._chunks.newest
        read = self._chunks.read()
        if read is None:
            return None
        self._waits = False
        chunk = read[1]
        stamp_ns = int(chunk["observation_ns"])
        # a record that is incomplete may have the same stamp: nothing new has come since
        shown = next((s for s, r in self._kept.items() if int(r["stamp_ns"]) == stamp_ns and r["valid"]), None)
        if shown is None or int(chunk["error"]):
            return None
        record = self._kept[shown]
        earlier = [self._kept[s] for s in sorted(self._kept) if s < shown] if self._history > 1 else []
        return Seen(record, earlier, int(chunk["tick"]), made_absolute(self._contract, chunk["actions"], record))

    def _keep(self, sequence: int) -> None:
        if sequence > 0 and sequence not in self._kept and len(self._kept) < _KEPT + self._back:
            read = self._observation.read(seq=sequence)
            if read is not None:
                self._kept[sequence] = read[1]

    def close(self) -> None:
        """Forget the memory."""
        self._requests.close()
        self._chunks.close()


class Nobody:
    """In place of an incumbent: the robot's newest observation, once in the time in which a chunk would be executed."""

    def __init__(self, contract: Contract, execute: int, observation: Arena, history: int) -> None:
        self._observation, self.execute, self._period_s = observation, execute, execute * contract.period_s
        self._back = 0 if history == 1 else observation.slots - 2
        self._max_age_ns = int(contract.observation_max_age_s * 1e9)
        self._next_s = 0.0

    def look(self) -> Seen | None:
        """Return the newest observation if it is time for one, and it is complete and fresh."""
        if time.monotonic() < self._next_s:
            return None
        read = self._observation.read()
        if read is None or not read[1]["valid"] or time.monotonic_ns() - int(read[1]["stamp_ns"]) > self._max_age_ns:
            return None
        self._next_s = time.monotonic() + self._period_s
        earlier = (self._observation.read(seq=s) for s in range(max(1, read[0] - self._back), read[0]))
        return Seen(read[1], [r[1] for r in earlier if r is not None])

    def close(self) -> None:
        """Nothing to forget."""
