# SPDX-License-Identifier: Apache-2.0
"""A shadow-only node: what the policy would have done, and how far that is from what the robot did."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_policy_node.contract.model import Contract
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.generation import GenerationHandle

Floats = npt.NDArray[np.float64]

_MEASUREMENTS = 4096
_CHUNKS = 50
"""Newest compared chunks, over which the mean is taken."""


@dataclass(frozen=True, eq=False)
class ShadowActions:
    """A chunk that nobody executes; see ``msg/ShadowActions.msg``."""

    version: str
    generation: int
    execute: int
    observed_ns: int  # monotonic; action 0 is meant for then
    actions: Floats  # [H, C], relative channels made absolute


class Follower:
    """Compares each chunk's executed part with the positions that were measured meanwhile. Called from one thread."""

    def __init__(self, contract: Contract, observation: Arena) -> None:
        self._observation = observation
        self._positions = np.array([c.is_position for c in contract.channels])
        self._relative = np.array([c.mode == "relative" for c in contract.channels])
        self._period_ns = 1e9 * contract.period_s
        self._seen = 0
        self._times: deque[int] = deque(maxlen=_MEASUREMENTS)
        self._measured: deque[Floats] = deque(maxlen=_MEASUREMENTS)
        self._waiting: deque[ShadowActions] = deque(maxlen=_CHUNKS)
        self._differences: deque[Floats] = deque(maxlen=_CHUNKS)

    def look(self) -> None:
        """Take in what was measured since the last call, and compare the chunks whose time is over."""
        newest = self._observation.newest
        for sequence in range(max(self._seen, newest - self._observation.slots + 1) + 1, newest + 1):
            read = self._observation.read(["measured", "measured_ns"], seq=sequence)
            if read is not None and (not self._times or int(read[1]["measured_ns"]) > self._times[-1]):
                self._times.append(int(read[1]["measured_ns"]))
                self._measured.append(read[1]["measured"])
        self._seen = newest
        while self._waiting and self._times and self._end_ns(self._waiting[0]) <= self._times[-1]:
            self._compare(self._waiting.popleft())

    def chunk(self, handle: GenerationHandle, fields: Mapping[str, npt.NDArray[Any]]) -> ShadowActions:
        """Return a chunk as it would be commanded; it is compared when its time is over."""
        observed_ns = int(fields["observation_ns"])
        base = np.where(self._relative, self._at(np.array([observed_ns], np.float64))[0], 0.0)
        actions = fields["actions"].astype(np.float64) + base
        shown = ShadowActions(handle.version, handle.id, handle.execute, observed_ns, actions)
        self._waiting.append(shown)
        return shown

    def difference(self) -> tuple[int, Floats]:
        """Return how many chunks were compared (the last 50 at most), and the mean absolute difference ``[C]``.

        Each channel's in its unit; NaN for what is no position.
        """
        differences = list(self._differences)
        if not differences:
            return 0, np.full(len(self._positions), np.nan)
        return len(differences), np.mean(differences, axis=0)

    def _end_ns(self, shown: ShadowActions) -> float:
        return shown.observed_ns + shown.execute * self._period_ns

    def _compare(self, shown: ShadowActions) -> None:
        if shown.observed_ns < self._times[0]:
            return  # it was not looked at long enough
        times = shown.observed_ns + self._period_ns * np.arange(shown.execute, dtype=np.float64)
        difference: Floats = np.abs(shown.actions[: shown.execute] - self._at(times)).mean(axis=0)
        self._differences.append(np.where(self._positions, difference, np.nan))

    def _at(self, times_ns: Floats) -> Floats:
        """Return the measured positions at so many times, ``[n, C]``, on straight lines between measurements."""
        if not self._times:
            return np.full((len(times_ns), len(self._positions)), np.nan)
        measured, at = np.array(self._measured), np.array(self._times)
        channels: list[Floats] = [np.interp(times_ns, at, measured[:, c]) for c in range(measured.shape[1])]
        return np.stack(channels, axis=1)
