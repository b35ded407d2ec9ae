# SPDX-License-Identifier: Apache-2.0
"""What happened in an episode, step by step, read off the control loop's own records, beside its tick."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from vla_policy_node.control.client import Tick

Floats = npt.NDArray[np.float64]
Ticks = Callable[[int], tuple[int, list[Tick]]]
Numbers = Callable[[], dict[int, Floats]]


@dataclass(frozen=True, eq=False)
class Steps:
    """Successive steps of one generation: n steps, C channels, S numbers of the observation. See ``msg/PolicySteps.msg``."""

    generation: int
    times_ns: list[int]  # monotonic, when the command was published
    interventions: list[bool]
    actions: Floats  # [n, C]
    policy_actions: Floats  # [n, C], NaN = it wanted nothing
    states: Floats  # [n, S]


class StepLog:
    """Follows the control loop from :meth:`begin` on. Thread-safe.

    Args:
        ticks: see ``ControlClient.ticks``.
        numbers: see ``ObservationBuffer.numbers``.
    """

    def __init__(self, ticks: Ticks, numbers: Numbers) -> None:
        self._ticks, self._numbers = ticks, numbers
        self._lock = threading.Lock()
        self._seen = 0

    def begin(self) -> None:
        """An episode begins: what was before does not belong to it."""
        with self._lock:
            self._seen, _ = self._ticks(0)

    def take(self, episode: int) -> list[Steps]:
        """Return the steps since the last call, or :meth:`begin`, in the episode of this number.

        A tick whose observation was incomplete, too old, or is forgotten, is no step.
        """
        with self._lock:
            self._seen, ticks = self._ticks(self._seen)
            numbers = self._numbers()
        steps = [tick for tick in ticks if tick.episode == episode and tick.observation in numbers]
        return list(_batches(steps, numbers))


def _batches(steps: list[Tick], numbers: dict[int, Floats]) -> Iterator[Steps]:
    for generation, group in groupby(steps, lambda tick: tick.generation):
        ticks = list(group)
        yield Steps(
            generation,
            [tick.stamp_ns for tick in ticks],
            [tick.operator for tick in ticks],
            np.stack([tick.command for tick in ticks]),
            np.stack([tick.policy_action for tick in ticks]),
            np.stack([numbers[tick.observation] for tick in ticks]),
        )
