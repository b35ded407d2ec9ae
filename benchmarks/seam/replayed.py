# SPDX-License-Identifier: Apache-2.0
"""The record of a run played through the chunk queue again: where each swap was, where its boundary, and what each had cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.seam.arm import ChunkRecord
from vla_policy_node.contract.model import Contract
from vla_policy_node.control.client import Tick
from vla_policy_node.control.limits import Limiter
from vla_policy_node.control.queue import Chunk, ChunkQueue
from vla_policy_node.control.swap import seam

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Jump:
    """What a switch at one tick does. ``apart`` [rad]: between both plans, channels compared in units of their step limits.

    ``change`` [rad]: largest change of the step from tick to tick while the chunks are blended; steady motion has none.
    """

    apart: float
    change: float


@dataclass(frozen=True)
class Switch:
    """A swap: the tick it chose (``plan``, and when that was), the boundary, and the jump at both."""

    plan: int
    time_s: float
    boundary: int
    generation: int
    chosen: Jump
    at_boundary: Jump


class RecordError(Exception):
    """The record does not add up: an action is none that the chunks can give."""


def switches(ticks: Sequence[Tick], records: Sequence[ChunkRecord], contract: Contract) -> list[Switch]:
    """Find the swaps of a run. Every action is computed again and must be the recorded one to the last bit.

    Raises RecordError if one is not.
    """
    limiter = Limiter([c.limits for c in contract.channels], [c.name for c in contract.channels])
    chunks = [_chunk(record, limiter) for record in records]
    queue, found = ChunkQueue(contract.blend_ticks), list[Switch]()
    acted = [tick for tick in ticks if np.isfinite(tick.policy_action).all()]
    for plan, tick in enumerate(acted):  # the plan clock counts the actions taken
        queue.plan = plan
        action = queue.peek()
        if action is not None and action.chunk.generation == tick.generation and _same(action.values, tick):
            continue
        old, boundary = queue.current, queue.boundary
        new = _taken_over(queue, chunks, tick)
        if old is not None and old.has(plan) and old.generation != new.generation:
            jumps = (_jump(old, new, at, contract.blend_ticks, limiter.step) for at in (plan, boundary))
            found.append(Switch(plan, tick.stamp_ns / 1e9, boundary, new.generation, *jumps))
        queue.take_over(new)
    return found


def _chunk(record: ChunkRecord, limiter: Limiter) -> Chunk:
    actions = record.actions.astype(np.float64)
    verdicts = limiter.judge(actions)
    takes_s = limiter.takes_s(actions, verdicts)
    return Chunk(record.generation, record.start, record.execute, actions, verdicts, 0, takes_s)


def _same(values: Floats, tick: Tick) -> bool:
    return bool(np.array_equal(values, tick.policy_action))


def _taken_over(queue: ChunkQueue, chunks: Sequence[Chunk], tick: Tick) -> Chunk:
    """Return the chunk whose first action this is; after a hold nothing is blended."""
    mine = [c for c in chunks if c.generation == tick.generation and c.has(queue.plan)]
    for chunk in mine:
        if _same(queue.preview(chunk), tick):
            return chunk
    for chunk in mine:
        if _same(chunk.actions[queue.plan - chunk.start], tick):
            queue.flush()
            return chunk
    raise RecordError(f"no chunk on record gives the action of plan tick {queue.plan}")


def _jump(old: Chunk, new: Chunk, at: int, blend_ticks: int, step: Floats) -> Jump:
    _, apart = seam(old.actions[at - old.start], new.actions[at - new.start], step)
    steps = np.diff(_played(old, new, at, blend_ticks), axis=0)
    return Jump(apart, float(np.abs(np.diff(steps, axis=0)).max()))


def _played(old: Chunk, new: Chunk, at: int, blend_ticks: int) -> Floats:
    """Return the actions ``[n, C]`` from two ticks before a switch to the first that is not blended."""
    queue = ChunkQueue(blend_ticks)
    queue.plan = at - 2
    queue.take_over(old)
    actions = []
    for plan in range(at - 2, at + blend_ticks + 1):
        if plan == at:
            queue.take_over(new)
        action = queue.peek()
        assert action is not None
        actions.append(action.values)
        queue.advance()
    return np.array(actions)
