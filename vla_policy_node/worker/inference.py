# SPDX-License-Identifier: Apache-2.0
"""The worker's work once it is READY: wait for a request, look at the newest observation, answer with a chunk."""

from __future__ import annotations

import contextlib
import os
import select
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.layouts import CHUNK_ERRORS
from vla_policy_node.policies.base import FloatArray, Policy
from vla_policy_node.worker.history import look_back

Array = npt.NDArray[Any]
WARM_UP_INFERENCES = 2
"""Before READY; one after two golden observations or more. Some are slow or disturbed: the shortest of all is the estimate."""
FEATURE = "feature:"
"""Prefix of the features' fields in the observation's layout."""
_SHADOW_POLL_S = 0.05  # how soon it notices that the shadow is over


class ChunkError(Exception):
    """No usable chunk came; ``error`` is one of :data:`CHUNK_ERRORS`."""

    def __init__(self, error: str, text: str) -> None:
        self.error = error
        super().__init__(text)

    @property
    def reason(self) -> str:
        """What went wrong, without the traceback."""
        cause = self.__cause__
        return str(self) if cause is None else f"{type(cause).__name__}: {cause}"


def infer(policy: Policy, observation: Mapping[str, Array], instruction: str) -> FloatArray:
    """Return a checked chunk: float32 ``[H, A]``, finite.

    Raises :class:`ChunkError` whatever the policy does instead (short of taking the process down).
    """
    spec = policy.spec
    try:
        chunk = policy.predict_chunk(observation, instruction)
    except ChunkError:
        raise  # a remote policy's
    except (Exception, SystemExit) as e:
        raise ChunkError("POLICY_FAILED", traceback.format_exc(limit=-8)) from e
    shape = (spec.horizon, spec.action_dim)
    if not isinstance(chunk, np.ndarray) or chunk.shape != shape or chunk.dtype != np.float32:
        found = f"{chunk.dtype} {chunk.shape}" if isinstance(chunk, np.ndarray) else type(chunk).__name__
        raise ChunkError("WRONG_SHAPE", f"the policy returned {found}, not float32 {shape}")
    finite = np.isfinite(chunk)
    if not finite.all():
        step, channel = np.argwhere(~finite)[0]
        raise ChunkError("NAN", f"action {step}, channel {channel} is {chunk[step, channel]}")
    return chunk


def reset(policy: Policy, seed: int | None = None) -> None:
    """Let a policy forget its episode, and seed it if it draws random numbers; raises :class:`ChunkError` otherwise."""
    try:
        policy.reset()
        if seed is not None and hasattr(policy, "seed"):
            policy.seed(seed)
    except (Exception, SystemExit) as e:
        raise ChunkError("POLICY_FAILED", traceback.format_exc(limit=-8)) from e


class InferenceLoop:
    """One generation's requests in, chunks out; the only writer of the chunk arena."""

    def __init__(
        self,
        policy: Policy,
        generation: int,
        *,
        observation: Arena,
        requests: Arena,
        chunks: Arena,
        eventfd: int,
        max_age_s: float,
        period_s: float,
        report: Callable[[str, str], None],
        shadow: Arena | None = None,
    ) -> None:
        """``shadow``: the observations of :meth:`run_in_shadow`, in the layout of ``observation``."""
        self._policy, self._generation = policy, generation
        self._observation, self._requests, self._chunks, self._eventfd = observation, requests, chunks, eventfd
        self._max_age_ns, self._period_s = int(max_age_s * 1e9), period_s
        self._report, self._shadow = report, shadow
        self._in_shadow = False
        self._poll = select.poll()
        self._poll.register(eventfd, select.POLLIN)
        self._features = {FEATURE + name: name for name in policy.spec.observation}
        self._no_actions = np.full((policy.spec.horizon, policy.spec.action_dim), np.nan, np.float32)
        self._answered = 0  # request number
        self._seen = 0  # sequence number of the newest request looked at
        self._episode: int | None = None  # None: reset before the next inference

    def run(self) -> None:
        """Answer requests until the process is killed."""
        while True:
            self._wait(None)
            self.answer()

    def run_in_shadow(self, is_over: Callable[[], bool]) -> None:
        """Answer requests on the observations in ``shadow``, whatever their age, until ``is_over``."""
        self._in_shadow = True
        while not is_over():
            if self._wait(_SHADOW_POLL_S):
                self.answer()
        self._in_shadow, self._episode = False, None  # reset before it acts
        if self._shadow is not None:
            self._shadow.close()
            self._shadow = None

    def _wait(self, timeout_s: float | None) -> bool:
        """Whether something was asked."""
        if not self._poll.poll(None if timeout_s is None else timeout_s * 1e3):
            return False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        return True

    def answer(self) -> None:
        """Answer the newest request, if it is a new one; requests that it overtook stay unanswered."""
        record = self._requests.read()
        if record is None or int(record[1]["request"]) == self._answered:
            return
        newest, request = record
        if any(
            self._asks_for_reset(seq) for seq in range(max(self._seen + 1, newest - self._requests.slots), newest + 1)
        ):
            self._episode = None
        self._seen = newest
        stamp_ns, spent_ns, error, actions = 0, 0, "", self._no_actions
        try:
            stamp_ns, features, instruction, episode = self._look()
            if episode != self._episode:
                self._episode = None  # should the reset fail, the next request tries again
                reset(self._policy)
                self._episode = episode
            begin, queued_ns = time.monotonic_ns(), self._queued_ns()
            try:
                actions = infer(self._policy, features, instruction)
            finally:
                spent_ns = time.monotonic_ns() - begin - (self._queued_ns() - queued_ns)
        except ChunkError as e:
            error = e.error
            self._report(error, str(e))
        self._answered = int(request["request"])
        self._chunks.write(
            {
                "request": request["request"],
                "tick": request["tick"],
                "generation": self._generation,
                "observation_ns": stamp_ns,
                "inference_ns": spent_ns,
                "error": CHUNK_ERRORS.index(error),
                "actions": actions,
            }
        )

    def _asks_for_reset(self, seq: int) -> bool:
        """True also for a request that was overwritten before it was seen: a reset too many does no harm."""
        record = self._requests.read(["reset"], seq=seq)
        return record is None or bool(record[1]["reset"])

    def _queued_ns(self) -> int:
        """Return how long this thread has waited for a processor so far; 0 if it acts, or the kernel does not count that.

        In shadow, at a raised nice level, it waits longer than it would if it acted.
        """
        with contextlib.suppress(OSError):
            if self._in_shadow:
                return int(Path("/proc/thread-self/schedstat").read_text().split()[1])
        return 0

    def _look(self) -> tuple[int, dict[str, Array], str, int]:
        arena = self._shadow if self._in_shadow and self._shadow is not None else self._observation
        history = self._policy.spec.history
        look = look_back(arena, tuple(self._features), history, self._period_s)
        if look is None or not look[0]["valid"]:
            raise ChunkError("OBSERVATION_STALE", "no complete observation")
        values, frames = look
        stamp_ns = int(values["stamp_ns"])
        age_ns = time.monotonic_ns() - stamp_ns
        if age_ns > self._max_age_ns and not self._in_shadow:
            raise ChunkError("OBSERVATION_STALE", f"the newest observation is {age_ns / 1e9:.3f} s old")
        instruction = values["instruction"].tobytes().rstrip(b"\0").decode(errors="replace")
        features = {
            name: np.stack([frame[field] for frame in frames]) if history > 1 else values[field]
            for field, name in self._features.items()
        }
        return stamp_ns, features, instruction, int(values["episode"])
