# SPDX-License-Identifier: Apache-2.0
"""What happens by itself when the acting generation is lost or its trial's lease runs out.

The control process holds from the moment of the loss; here it is decided what acts next. On trial: the generation that acted
before. Committed: the same bundle loaded again, a few times; then the standby; then nothing, and the hold stays.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vla_checkpoint.errors import CheckpointError
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.errors import PolicyNodeError
from vla_policy_node.generations import Generations
from vla_policy_node.lease import TrialLease
from vla_policy_node.residents import Resident
from vla_policy_node.swapping import LEASE_EXPIRED, WORKER_LOST
from vla_policy_node.worker.api import PrepareError

EXPECTED_ERRORS = (PolicyNodeError, PrepareError, CheckpointError)
"""Everything that preparing or activating a bundle is documented to raise."""


class Recovery:
    """Runs one automatic change after the other on a thread of its own: loading takes seconds."""

    def __init__(
        self,
        config: PolicyNodeConfig,
        generations: Generations,
        *,
        current_episode: Callable[[], int],
        report_error: Callable[[str, str], None],
    ) -> None:
        self._config, self._generations = config, generations
        self._current_episode, self._report_error = current_episode, report_error
        self._executor = ThreadPoolExecutor(1, "recovery")
        self._losses: deque[float] = deque()
        self._swaps: tuple[int, int] = (-1, 0)  # episode, automatic swaps in it
        self._deferred: Callable[[], None] | None = None
        self._closing = threading.Event()

    def lease_expired(self, lease: TrialLease) -> None:
        """The manager fell silent in a trial: what acted before acts again, at the next chunk boundary."""
        self._submit(lambda: self._after_lease(lease))

    def worker_lost(self, resident: Resident, lease: TrialLease | None) -> None:
        """The acting generation has gone."""
        self._submit(lambda: self._after_loss(resident, lease))

    def start_from(self, path: Path, on_done: Callable[[], None]) -> None:
        """Load what the node starts with and make it active (it does not move the robot before the control process may)."""

        def work() -> None:
            try:
                resident = self._generations.prepare(path, cancelled=self._closing.is_set)
                self._generations.activate_now(resident, "UPDATE")
            finally:
                on_done()

        self._submit(work)

    def episode_ended(self) -> None:
        """Do what the limit of automatic swaps had put off."""
        deferred, self._deferred = self._deferred, None
        if deferred is not None:
            self._submit(deferred)

    def close(self) -> None:
        """Start nothing more and wait for what is under way (a preparation is cancelled)."""
        self._closing.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except EXPECTED_ERRORS as e:
                self._report_error(str(getattr(e, "code", "RECOVERY_FAILED")), str(e))
            except Exception as e:
                self._report_error("INTERNAL_ERROR", repr(e))
                raise

        if not self._closing.is_set():
            self._executor.submit(guarded)

    def _may_swap(self, otherwise: Callable[[], None]) -> bool:
        """One automatic swap an episode: a robot must not be handed to and fro while it carries something.

        Past that, ``otherwise`` is what is done when the episode is over.
        """
        episode = self._current_episode()
        count = self._swaps[1] if self._swaps[0] == episode else 0
        if episode and count >= self._config.auto_swaps_per_episode:
            self._report_error(
                "AUTO_SWAP_LIMIT", f"{count} automatic swaps in this episode already: waiting for its end"
            )
            self._deferred = otherwise
            return False
        self._swaps = (episode, count + 1)
        return True

    def _after_lease(self, lease: TrialLease) -> None:
        fallback = self._generations.residents.by_id(lease.fallback)
        if fallback is None:
            self._report_error("LEASE_EXPIRED", "the manager is silent, and nothing acted before: the trial goes on")
            return
        if self._may_swap(lambda: self._after_lease(lease)):
            self._generations.activate_now(fallback, LEASE_EXPIRED, at="CHUNK")

    def _after_loss(self, lost: Resident, lease: TrialLease | None) -> None:
        residents = self._generations.residents
        if not self._may_swap(lambda: self._after_loss(lost, lease)):
            return
        if lease is not None:
            fallback = residents.by_id(lease.fallback)
            if fallback is not None:
                self._generations.activate_now(fallback, WORKER_LOST)
                return
        if self._may_reload():
            try:
                self._generations.activate_now(self._generations.prepare(lost.path, lost.digest), WORKER_LOST)
                return
            except EXPECTED_ERRORS as e:
                self._report_error(str(getattr(e, "code", "")), f"{lost.version} cannot be loaded again: {e}")
        if residents.standby is None:
            raise PolicyNodeError("POLICY_LOST", f"{lost.version} was lost and nothing stands by: holding")
        self._generations.activate_now(residents.standby, WORKER_LOST)

    def _may_reload(self) -> bool:
        now = time.monotonic()
        while self._losses and now - self._losses[0] > self._config.reload_window_s:
            self._losses.popleft()
        self._losses.append(now)
        return len(self._losses) <= self._config.reload_attempts
