# SPDX-License-Identifier: Apache-2.0
"""A swap that was asked for: when it may happen, and what it has cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_policy_node.control.generation import Generation
from vla_policy_node.control.limits import REASONS
from vla_policy_node.control.queue import Chunk, ChunkQueue

Floats = npt.NDArray[np.float64]

UPDATE = "UPDATE"
EXPERIMENT = "EXPERIMENT"
"""The version was drawn for the episode that begins."""
WAYS_BACK = ("ROLLBACK", "LEASE_EXPIRED", "WORKER_LOST")
"""Causes of a swap to what acted before, or in place of what was lost; the others are UPDATE and EXPERIMENT."""
_DEADLINE_MARGIN_TICKS = 5  # a swap that chooses its tick leaves so many for ticks that come late
_UNUSABLE = "the new generation's first chunk could not be used"


@dataclass
class PendingSwap:
    """``at``: CHUNK = end of the executed part; EPISODE = next start of an episode; REST = command at rest; NOW = at once."""

    swap_id: str
    generation: Generation
    at: str
    asked_ns: int  # when the request was made, in the node process
    deadline_ns: int
    episode: int  # when it was asked for
    cause: str = UPDATE
    chunk: Chunk | None = None  # the new generation's first, judged
    not_before: int = 0  # plan tick from which the way from the acting chunk to that one is smoothest (at: CHUNK)
    not_before_ns: int = 0  # its worker had no fresh observation: ask again then

    @property
    def may_choose(self) -> bool:
        """Whether it may wait some ticks beyond its boundary for a smaller jump: a way back never does."""
        return self.at == "CHUNK" and self.cause not in WAYS_BACK

    def is_open(self, episode: int, *, at_rest: bool) -> bool:
        """Whether the new generation is asked for chunks."""
        if self.at == "EPISODE":
            return episode != self.episode
        return at_rest if self.at == "REST" else True

    def is_due(self, episode: int, *, at_rest: bool, at_boundary: bool) -> bool:
        """Whether the new generation may take over on this tick."""
        if self.at == "CHUNK":
            return at_boundary
        return self.is_open(episode, at_rest=at_rest)

    def fault(self, chunk: Chunk, index: int) -> tuple[str, str] | None:
        """Return error code and text if the part that would be executed from ``index`` on breaks a limit."""
        bad = np.flatnonzero(chunk.verdicts[index : index + chunk.execute])
        if not bad.size:
            return None
        at = index + int(bad[0])
        violation = self.generation.limiter.explain(chunk.actions[at], chunk.actions[at - 1] if at else None)
        return REASONS[int(chunk.verdicts[at])], f"the new generation's first chunk: {violation.message}"

    def collect(self, now_ns: int, plan: int, retry_ns: int) -> tuple[str, str] | None:
        """Take in the new generation's answer, in time to act or not; return error code and text if it cannot be used.

        ``retry_ns``: when it is asked again if its worker has no fresh observation.
        """
        answer = self.generation.poll(now_ns)
        if fault := self._fault_of_outdated():
            return fault
        if answer is not None and answer.chunk is not None:
            self.chunk = answer.chunk
            if fault := self.fault(answer.chunk, 0):
                return fault
        elif answer is not None and answer.error == "OBSERVATION_STALE":
            self.not_before_ns = retry_ns
        elif answer is not None:
            return answer.error, _UNUSABLE
        if self.chunk is not None and not self.chunk.has(plan):
            self.chunk = None
        return None

    def choose(self, queue: ChunkQueue, margin: int, in_time: int) -> None:
        """Note the plan tick from which the way to its chunk is smoothest.

        ``margin``: ticks by which a chunk is asked for earlier than its latency says; ``in_time``: ticks until the deadline.
        """
        if self.chunk is not None:
            early, latest = self.generation.latency_ticks + margin, queue.plan + in_time - _DEADLINE_MARGIN_TICKS
            self.not_before = queue.calmest(self.chunk, self.generation.limiter, early, latest)

    def _fault_of_outdated(self) -> tuple[str, str] | None:
        """Judge a chunk that came too late to act: a slow machine must not hide what the policy wants."""
        answer, self.generation.outdated = self.generation.outdated, None
        if answer is None or answer.error == "OBSERVATION_STALE":
            return None
        if answer.chunk is None:
            return answer.error, _UNUSABLE
        return self.fault(answer.chunk, 0)


def seam(before: Floats | None, after: Floats, step: Floats) -> tuple[int, float]:
    """Return channel and size of the largest change between two commands, channels compared in units of their step limit."""
    if before is None:
        return 0, 0.0
    jump = np.abs(after - before)
    channel = int(np.argmax(jump / step))
    return channel, float(jump[channel])


def swapped_event(swap: PendingSwap, previous: int, tick: int, now_ns: int) -> dict[str, Any]:
    """Return the SWAPPED event of a swap without motion; the loop adds what a moving one has."""
    return {
        "type": "SWAPPED",
        "swap_id": swap.swap_id,
        "generation": swap.generation.id,
        "previous": previous,
        "at": swap.at,
        "tick": tick,
        "latency_s": max(0, now_ns - swap.asked_ns) / 1e9,
        "acted": False,  # the robot did not move: the first action comes with the end of the hold
        "seam_jump": 0.0,
        "seam_channel": "",
        "typical_step": 0.0,
    }
