# SPDX-License-Identifier: Apache-2.0
"""One generation as the loop sees it: ask for a chunk, look whether it is there. Neither ever waits."""

from __future__ import annotations

import math
import os
import select
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_policy_node.control.limits import Limiter, Violation
from vla_policy_node.control.queue import Chunk
from vla_policy_node.ipc.generation import GenerationHandle
from vla_policy_node.ipc.layouts import CHUNK_ERRORS

Floats = npt.NDArray[np.float64]

_LATENCIES_KEPT = 8


@dataclass(frozen=True, eq=False)
class Answer:
    """What a worker made of a request: a chunk, or the reason why not (one of CHUNK_ERRORS)."""

    chunk: Chunk | None
    error: str
    violation: Violation | None = None  # NAN: of the first channel that is not finite, if it is known


class Generation:
    """One loaded generation. Answers to anything but the request that is open are refused (and counted)."""

    def __init__(
        self,
        handle: GenerationHandle,
        limiter: Limiter,
        relative: npt.NDArray[np.bool_],
        period_ns: int,
        latency_s: float,
    ) -> None:
        """Attach the handle's arenas. ``relative`` ``[C]``: channels whose actions are relative to the measured position."""
        self.id, self.version, self.limiter = handle.id, handle.version, limiter
        self.horizon, self.execute = handle.horizon, handle.execute
        self.asked_ns = 0  # of the open request; 0 = none is open
        self.outdated: Answer | None = None
        """The last answer that came too late to be used, while another is waited for: it still says what the policy is like."""
        self.refused = 0
        self._relative = relative if relative.any() else None
        self._period_ns = period_ns
        self._latencies: deque[int] = deque(maxlen=_LATENCIES_KEPT)
        self._took(int(latency_s * 1e9))
        self._chunks, self._requests = handle.attach_chunks(), handle.attach_requests()
        self._seen = self._chunks.newest  # what lies there now was not asked for by this loop
        record = self._requests.read(["request"])
        self._request = 0 if record is None else int(record[1]["request"])
        self._plan = 0
        self._base: Floats | None = None
        self._eventfd = handle.eventfd
        self._writable = select.poll()
        self._writable.register(handle.eventfd, select.POLLOUT)

    def _took(self, latency_ns: int) -> None:
        self._latencies.append(latency_ns)
        self.latency_ticks = math.ceil(max(self._latencies) / self._period_ns)
        """Ticks from request to chunk: the longest of the last round trips, rounded up."""

    def can_ask(self, now_ns: int) -> bool:
        """Whether no request is open, or the open one is so old that its chunk would be refused."""
        return self.asked_ns == 0 or now_ns - self.asked_ns > self.horizon * self._period_ns

    def ask(self, plan: int, now_ns: int, measured: Floats, *, reset: bool) -> None:
        """Ask for a chunk whose action 0 is due at plan tick ``plan``."""
        self._request += 1
        self._plan, self.asked_ns = plan, now_ns
        if self._relative is not None:
            self._base = np.where(self._relative, measured, 0.0)
        self._requests.write({"request": self._request, "tick": plan, "reset": int(reset)})
        if self._writable.poll(0):  # a counter that is full wakes the worker as well
            os.eventfd_write(self._eventfd, 1)

    def forget(self) -> None:
        """Refuse the answer to the open request."""
        self.asked_ns, self.outdated = 0, None

    def poll(self, now_ns: int) -> Answer | None:
        """Return the answer to the open request if it has come."""
        newest = self._chunks.newest
        if newest == self._seen:
            return None
        self._seen = newest
        read = self._chunks.read()
        if read is None:
            return None
        record = read[1]
        waits = self.asked_ns != 0 and int(record["generation"]) == self.id
        if not waits or int(record["request"]) != self._request or int(record["tick"]) != self._plan:
            self.refused += 1
            if waits and self._relative is None:  # what an older request's actions were relative to is forgotten
                self.outdated = self._answer(record, self.asked_ns)
            return None
        waited_ns, asked_ns = now_ns - self.asked_ns, self.asked_ns
        self.asked_ns = 0
        if int(record["error"]) == 0:
            self._took(waited_ns)
        answer = self._answer(record, asked_ns)
        if int(record["error"]) == 0 and waited_ns > self.horizon * self._period_ns:
            self.outdated = answer
            return Answer(None, "OBSERVATION_STALE")  # its whole plan has passed while it was made
        return answer

    def _answer(self, record: Mapping[str, Any], asked_ns: int) -> Answer:
        error = int(record["error"])
        if error != 0:
            return Answer(None, CHUNK_ERRORS[error] if error < len(CHUNK_ERRORS) else "POLICY_FAILED")
        actions = record["actions"].astype(np.float64)
        if self._base is not None:
            actions += self._base
        bad = np.flatnonzero(~np.isfinite(actions).all(axis=0))
        if bad.size:
            channel = int(bad[0])
            text = f"the chunk holds NaN or infinity: {self.limiter.names[channel]}"
            return Answer(None, "NAN", Violation("NAN", channel, math.nan, math.nan, text))
        verdicts = self.limiter.judge(actions)
        takes_s = self.limiter.takes_s(actions, verdicts)
        return Answer(Chunk(self.id, int(record["tick"]), self.execute, actions, verdicts, asked_ns, takes_s), "")

    def close(self) -> None:
        """Forget the memory and close the descriptors."""
        self._chunks.close()
        self._requests.close()
        os.close(self._eventfd)
