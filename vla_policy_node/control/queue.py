# SPDX-License-Identifier: Apache-2.0
"""The chunk queue: which action is due now.

Time is the *plan clock*: it counts the ticks on which an action was taken. While the policy acts that is the control tick;
while the robot holds, plans wait with it. Action ``i`` of a chunk asked for at plan tick ``t`` is due at ``t + i``, so a chunk
that arrives after ``n`` ticks of motion begins with its action ``n``, and one that was asked for at rest with its first.

A chunk is executed for ``execute`` actions after its take-over; then the next one takes over if it is there, the old one's
remaining actions serve if it is not, and after those the queue is dry (the tick is *starved*). At a take-over the overlap
of both chunks is blended linearly. The first chunk of another generation may let the old one serve a little longer, until
the way from one to the other is smoothest (:meth:`ChunkQueue.calmest`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vla_policy_node.control.limits import OK, Limiter

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Chunk:
    """A judged chunk."""

    generation: int
    start: int  # plan tick of action 0
    execute: int
    actions: Floats  # [H, C], physical units
    verdicts: npt.NDArray[np.uint8]  # [H], of Limiter.judge
    asked_ns: int
    takes_s: Sequence[float]  # [H], of Limiter.takes_s
    rows: list[Floats] = field(init=False)  # [H] of [C], the actions one by one: always the same objects
    end: int = field(init=False)  # plan tick after the last action

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", list(self.actions))
        object.__setattr__(self, "end", self.start + len(self.actions))

    def has(self, plan: int) -> bool:
        """Whether there is an action for that plan tick."""
        return self.start <= plan < self.end

    def sound_until(self, plan: int) -> int:
        """Return the first plan tick from ``plan`` on whose action breaks a limit; ``end`` if none does."""
        bad = np.flatnonzero(self.verdicts[max(0, plan - self.start) :])
        return max(plan, self.start) + int(bad[0]) if bad.size else self.end


class Action(NamedTuple):
    """One action to take."""

    chunk: Chunk
    row: int  # of the chunk
    values: Floats  # [C], blended, or the chunk's own row
    takes_over: bool  # first action of its chunk

    def takes_s_after(self, command: Floats) -> float:
        """Return the time that it takes after ``command`` at the largest velocity [s], as its chunk was judged.

        Infinity unless it and ``command`` are this row of the chunk and the one before: then it is to be judged by itself.
        """
        rows, row = self.chunk.rows, self.row
        own = self.values is rows[row] and command is rows[row - 1]
        return self.chunk.takes_s[row] if own else math.inf


class ChunkQueue:
    """At most one chunk that acts, one that fades out and one that waits."""

    def __init__(self, blend_ticks: int) -> None:
        self.blend_ticks = blend_ticks
        self.plan = 0
        self.boundary = 0  # plan tick at which the executed part ends
        self.current: Chunk | None = None
        self.waiting: Chunk | None = None
        self.at_once = False  # the next chunk takes over as soon as it is there
        self.not_before = 0  # plan tick that a swap has chosen: no chunk takes over before it, unless at once
        self._fading: Chunk | None = None
        self._took_over = 0

    def flush(self) -> None:
        """Forget all actions. The plan clock goes on."""
        self.current = self.waiting = self._fading = None
        self.at_once = False
        self.boundary = self.plan

    def offer(self, chunk: Chunk) -> None:
        """Let a chunk wait for its turn; a newer one replaces it."""
        self.waiting = chunk

    @property
    def at_boundary(self) -> bool:
        """Whether the next chunk may take over now."""
        if self.current is None or self.at_once or not self.current.has(self.plan):
            return True
        return self.plan >= max(self.boundary, self.not_before)

    @property
    def left(self) -> int:
        """Actions left, without the chunk that waits."""
        return 0 if self.current is None else max(0, self.current.end - self.plan)

    def take_over(self, chunk: Chunk) -> None:
        """Let ``chunk`` act from this plan tick on; the one before it fades out."""
        self._fading = self.current
        self.current, self.waiting, self.at_once = chunk, None, False
        self._took_over = self.plan
        # Keep some of the rest for the blending with the chunk after this one.
        last = max(self.plan + 1, chunk.end - self.blend_ticks)
        self.boundary = min(self.plan + chunk.execute, last)

    def calmest(self, chunk: Chunk, limiter: Limiter, early: int, latest: int) -> int:
        """Return the plan tick, from the boundary on, from which the largest step of the fade to ``chunk`` is smallest.

        Steps are counted in parts of what ``limiter``, that of ``chunk``, accepts; of equal ticks the first counts. Every
        tick that may be chosen leaves the acting chunk what is blended, and ``chunk`` its executed part and what is blended
        after that, or ``early`` ticks for the chunk after it if that is more. None is later than ``latest`` or than one
        executed part after the boundary. Without room for a choice, or if every fade has a step that is not accepted, it is
        the boundary, or now if that has passed.
        """
        first, old = max(self.plan, self.boundary), self.current
        if old is None or self.at_once:
            return self.plan
        kept = self.blend_ticks + max(chunk.execute, early)
        ends = (old.sound_until(first) - max(1, self.blend_ticks), chunk.sound_until(first) - kept)
        last = min(*ends, first + old.execute, latest)
        # While the acting chunk still fades in, its own actions are not what is commanded.
        if last <= first or first <= self._took_over + self.blend_ticks:
            return first
        fades = self._fades(chunk, old, np.arange(first, last + 1))
        largest = limiter.used(np.diff(fades, axis=1)).max(axis=1)
        best = int(np.argmin(largest))
        return first + best if largest[best] <= 1.0 else first

    def _fades(self, chunk: Chunk, old: Chunk, ticks: npt.NDArray[np.int64]) -> Floats:
        """Return the fade from ``old`` to ``chunk`` that begins at each of ``ticks`` ``[N]``.

        ``[N, blend + 2, C]``: the action before it, the blended ones, the action after it.
        """
        at = ticks[:, None] + np.arange(-1, self.blend_ticks + 1)
        weight = (np.arange(self.blend_ticks + 2) / (self.blend_ticks + 1))[:, None]  # 0 and 1 at the ends
        new_plan = chunk.actions[np.maximum(at - chunk.start, 0)]
        old_plan = old.actions[np.minimum(at - old.start, len(old.actions) - 1)]
        fades: Floats = weight * new_plan + (1.0 - weight) * old_plan
        return fades

    def peek(self) -> Action | None:
        """Return the action due now; ``None`` = dry. Lets the chunk that waits take over when it is its turn."""
        waiting = self.waiting
        if waiting is not None and self.at_boundary:
            if waiting.has(self.plan):
                self.take_over(waiting)
            else:
                self.waiting = None
        chunk, plan = self.current, self.plan
        if chunk is None or not chunk.has(plan):
            return None
        since = plan - self._took_over
        return Action(chunk, plan - chunk.start, self._blended(chunk, self._fading, since), since == 0)

    def preview(self, chunk: Chunk) -> Floats:
        """Return the first action that ``chunk`` would give if it took over now, blended with the one that acts."""
        return self._blended(chunk, self.current, 0)

    def advance(self) -> None:
        """The action was taken."""
        self.plan += 1

    def _blended(self, chunk: Chunk, old: Chunk | None, since: int) -> Floats:
        new = chunk.rows[self.plan - chunk.start]
        if old is None or since >= self.blend_ticks or not old.has(self.plan):
            return new
        index = self.plan - old.start
        if old.verdicts[index] != OK:
            return new
        weight = (since + 1) / (self.blend_ticks + 1)
        blend: Floats = weight * new + (1.0 - weight) * old.actions[index]
        return blend
