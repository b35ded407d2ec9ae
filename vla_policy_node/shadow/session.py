# SPDX-License-Identifier: Apache-2.0
"""A candidate in shadow: it is asked what the acting generation was asked, on the same observation, in that one's pauses."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_checkpoint.manifest import Manifest
from vla_checkpoint.version import parse_version
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.contract.model import Contract
from vla_policy_node.control.client import ControlStatus
from vla_policy_node.control.limits import Limiter
from vla_policy_node.ipc.arena import Arena, ArenaError
from vla_policy_node.ipc.layouts import CHUNK_ERRORS, OBSERVATION_SLOTS
from vla_policy_node.shadow.incumbent import Feed, Incumbent, Nobody, Seen, made_absolute
from vla_policy_node.shadow.judge import ShadowJudge, ShadowReport
from vla_policy_node.worker.api import Generation, PrepareError
from vla_policy_node.worker.pool import Progress

_LOAD_SHARE = 0.5  # of the whole preparation's progress
_POLL_S = 0.002
_NO_EPISODE = np.array(2**64 - 1, np.uint64)
_PATIENCE_S = 5.0
_PATIENCE_HORIZONS = 3.0  # for each chunk


class Shadow:
    """Puts candidates of one policy node through their shadow.

    Args:
        config: ``shadow_chunks``, ``shadow_divergence_limit``.
        contract: of the robot.
        observation: the arena that the node writes.
        active: the generation that acts, ``None`` = none.
        status: what the control loop is doing.
    """

    def __init__(
        self,
        config: PolicyNodeConfig,
        contract: Contract,
        observation: Arena,
        active: Callable[[], Generation | None],
        status: Callable[[], ControlStatus | None],
    ) -> None:
        self.config, self.contract, self.observation = config, contract, observation
        self.active, self._status = active, status

    def stage(self, on_progress: Progress, cancelled: Callable[[], bool]) -> Stage:
        """Return the stage for one candidate: make it before the load, and close it."""
        return Stage(self, on_progress, cancelled)

    def why_incomplete(self) -> str:
        """Say what keeps candidates from being judged."""
        status, seen = self._status(), self.observation.read(["valid"])
        if seen is None or not seen[1]["valid"]:
            return "the robot's observations are incomplete or too old"
        if status is not None and status.mode == "HOLDING":
            return f"the active policy holds ({status.hold_reason})"
        if status is not None and status.mode != "RUNNING":
            return f"the active policy does not act ({status.mode.lower().replace('_', ' ')})"
        return "the active policy makes too few chunks, or the new one takes too long for each"


class Stage:
    """One candidate's time in shadow: ``with shadow.stage(…) as stage``, load with ``stage.arena``, then :meth:`run`."""

    def __init__(self, shadow: Shadow, on_progress: Progress, cancelled: Callable[[], bool]) -> None:
        self._node, self._on_progress, self._cancelled = shadow, on_progress, cancelled
        self.arena = Arena.create(shadow.observation.layout, OBSERVATION_SLOTS + 1, "vla_shadow")
        """What the candidate observes (see ``WorkerPool.prepare``)."""

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.arena.close()

    def loading(self, state: str, fraction: float) -> None:
        """Tell the progress of the load: the first half of the whole, and not yet READY."""
        if state != "READY":
            self._on_progress(state, _LOAD_SHARE * fraction)

    def run(self, candidate: Generation, limits: Sequence[Mapping[str, float]]) -> ShadowReport:
        """Judge ``shadow_chunks`` chunks of a candidate, whom nobody else asks; blocks. It may act afterwards.

        ``limits``: those of its bundle (``Contract.bundle_limits``).

        Raises PrepareError SHADOW_DIVERGED, SHADOW_LIMIT, SHADOW_TOO_SLOW, SHADOW_FAILED, SHADOW_INCOMPLETE, WORKER_DIED,
        WORKER_HOST_LOST, CANCELLED.
        """
        node, channels = self._node, self._node.contract.channels
        tightened = [c.limits.tightened(own) for c, own in zip(channels, limits, strict=True)]
        limiter = Limiter(tightened, [c.name for c in channels])
        chunks, limit = node.config.shadow_chunks, node.config.shadow_divergence_limit
        judge = ShadowJudge(node.contract, limiter, candidate.spec, chunks=chunks, divergence_limit=limit)
        active = node.active()
        with contextlib.closing(self._feed(active, candidate)) as feed:
            compare = active is not None and are_comparable(active.manifest, candidate.manifest)
            with contextlib.closing(
                _Session(node.contract, candidate, self.arena, feed, judge, compare=compare)
            ) as session:
                report = self._watch(session, candidate, active)
        candidate.end_shadow()
        self._on_progress("READY", 1.0)
        return report

    def _feed(self, active: Generation | None, candidate: Generation) -> Feed:
        contract, observation = self._node.contract, self._node.observation
        if active is None:
            return Nobody(contract, candidate.spec.execute, observation, candidate.spec.history)
        try:
            return Incumbent(contract, active.handle, observation, candidate.spec.history)
        except (ArenaError, OSError) as e:  # its descriptors were closed this moment
            raise _changed() from e

    def _watch(self, session: _Session, candidate: Generation, active: Generation | None) -> ShadowReport:
        begun_s, wanted, node = time.monotonic(), self._node.config.shadow_chunks, self._node
        patience_s = _PATIENCE_S + _PATIENCE_HORIZONS * wanted * candidate.spec.horizon * node.contract.period_s
        self._tell(0.0)
        while session.judge.chunks < wanted:
            waited_s = time.monotonic() - begun_s
            if self._cancelled():
                raise PrepareError("CANCELLED", "cancelled on request")
            if not candidate.alive:
                raise PrepareError(candidate.died_code, f"worker {candidate.pid} ended in shadow")
            if node.active() is not active:
                raise _changed()
            if waited_s > patience_s:
                done = f"{session.judge.chunks} of {wanted} chunks in {waited_s:.0f} s of shadow"
                raise PrepareError("SHADOW_INCOMPLETE", f"{done}: {node.why_incomplete()}")
            if session.step():
                self._tell(session.judge.chunks / wanted)
            time.sleep(_POLL_S)
        return session.judge.report(time.monotonic() - begun_s)

    def _tell(self, share: float) -> None:
        self._on_progress("SHADOW", _LOAD_SHARE + (1.0 - _LOAD_SHARE) * share)


def are_comparable(incumbent: Manifest, candidate: Manifest) -> bool:
    """Whether two bundles should want about the same: one task's policy, of one major version (one architecture)."""
    majors = {parse_version(manifest.version).major for manifest in (incumbent, candidate)}
    return incumbent.name == candidate.name and len(majors) == 1


def _changed() -> PrepareError:
    return PrepareError(
        "SHADOW_INCOMPLETE", "another policy has begun to act: there is nothing to compare with any more"
    )


class _Session:
    """Asks the candidate, as the only writer of its request and shadow arenas, and shows its answers to the judge."""

    def __init__(
        self, contract: Contract, candidate: Generation, arena: Arena, feed: Feed, judge: ShadowJudge, *, compare: bool
    ) -> None:
        self.judge = judge
        self._contract, self._arena, self._feed, self._compare = contract, arena, feed, compare
        self._eventfd = candidate.handle.eventfd
        self._requests, self._chunks = candidate.handle.attached()
        self._request = 0
        self._asked: Seen | None = None  # what is not answered yet
        self._before: Seen | None = None  # the incumbent's chunk before

    def step(self) -> bool:
        """Look, ask, listen; returns whether a chunk was judged. Never waits."""
        seen = self._feed.look()
        if seen is not None:
            self._note(seen)
            if self._asked is None:
                self._ask(seen)
        answer = self._answer()
        if answer is None:
            return False
        asked, self._asked = self._asked, None
        assert asked is not None
        actions = made_absolute(self._contract, answer["actions"], asked.record)
        incumbent = asked.actions[: self._feed.execute] if self._compare and asked.actions is not None else None
        self.judge.candidate(actions, int(answer["inference_ns"]) / 1e9, incumbent)
        return True

    def _note(self, seen: Seen) -> None:
        """Show the judge what the incumbent wants for ticks of which it has spoken before, in the same episode."""
        before, self._before = self._before, seen
        if before is None or before.actions is None or seen.actions is None:
            return
        shift = seen.tick - before.tick
        overlap = min(len(before.actions) - shift, self._feed.execute)
        if shift > 0 and overlap > 0 and int(before.record["episode"]) == int(seen.record["episode"]):
            self.judge.incumbent(before.actions[shift : shift + overlap], seen.actions[:overlap])

    def _ask(self, seen: Seen) -> None:
        if seen.earlier:
            # What was asked about before belongs to no history of this.
            self._arena.write({**seen.record, "episode": _NO_EPISODE})
        for record in (*seen.earlier, seen.record):
            self._arena.write(dict(record))
        self._request += 1
        self._requests.write({"request": self._request, "tick": seen.tick, "reset": 0})
        os.eventfd_write(self._eventfd, 1)
        self._asked = seen

    def _answer(self) -> dict[str, npt.NDArray[Any]] | None:
        """Return the record that answers what was asked, if it has come. Raises PrepareError SHADOW_FAILED."""
        read = self._chunks.read() if self._asked is not None else None
        if read is None or int(read[1]["request"]) != self._request:
            return None
        error = CHUNK_ERRORS[int(read[1]["error"])]
        if error == "OBSERVATION_STALE":  # the robot's fault: it is asked about the next one
            self._asked = None
            return None
        if error:
            raise PrepareError("SHADOW_FAILED", f"{error} on an observation of the robot; the log has the details")
        return read[1]

    def close(self) -> None:
        """Forget the memory."""
        self._requests.close()
        self._chunks.close()
