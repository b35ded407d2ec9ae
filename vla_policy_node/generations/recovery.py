# SPDX-License-Identifier: Apache-2.0
"""What happens by itself when the acting generation is lost or its trial's lease runs out.

The control process holds from the moment of the loss; here it is decided what acts next. On trial: the generation that acted
before. Committed: the same bundle loaded again, a few times; then the standby, unless it was never more than on trial or under
test; then nothing, and the hold stays.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vla_checkpoint.errors import CheckpointError
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.control.swap import UPDATE
from vla_policy_node.errors import UNCLEAR, PolicyNodeError, fault_of
from vla_policy_node.generations.generations import Generations
from vla_policy_node.generations.lease import TrialLease
from vla_policy_node.generations.residents import Loss, OnDisk, Resident
from vla_policy_node.generations.swapping import LEASE_EXPIRED, WORKER_LOST
from vla_policy_node.worker.api import HOST_LOST, PrepareError
from vla_ros.fault import Fault

LOG = logging.getLogger("vla_policy_node")

EXPECTED_ERRORS = (PolicyNodeError, PrepareError, CheckpointError)
"""Everything that preparing or activating a bundle is documented to raise."""
_POLL_S = 0.05
_RETRY_S = 1.0  # a lease's way back that could not be taken
_START_WAITS_S = (1.0, 3.0, 10.0)  # before the first load is tried again
_HOST_WAITS_S = (1.0, 3.0, 10.0, 30.0, 60.0)  # a worker host may have to be started again
_LINE_WAITS = 1.5  # times worker_silence_s: so much later than one of a host's lines is another one found lost
_HOST_AWAY = frozenset({HOST_LOST, "WORKER_HOST_UNREACHABLE"})


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
        self._losses: defaultdict[str, deque[float]] = defaultdict(deque)  # digest -> when it was lost
        self._swaps: tuple[int, int] = (-1, 0)  # episode, automatic swaps in it
        self._deferred: tuple[int, Callable[[], None]] | None = None  # episode that has to end first, what to do then
        self._closing = threading.Event()

    def lease_expired(self, lease: TrialLease) -> None:
        """The manager fell silent in a trial: what acted before acts again. Or an experiment is over."""
        self._submit(lambda: self._after_lease(lease))

    def worker_lost(self, resident: Resident, lease: TrialLease | None, why: Loss) -> None:
        """The acting generation has gone."""
        self._submit(lambda: self._after_loss(resident, lease, why))

    def start_from(self, path: Path, on_done: Callable[[], None]) -> None:
        """Load what the node starts with and make it active (it does not move the robot before the control process may).

        What fails for a reason that may pass is tried a few times, unless somebody activates something meanwhile.
        """

        def work() -> None:
            try:
                for wait_s in (*_START_WAITS_S, None):
                    try:
                        self._start(path)
                        return
                    except EXPECTED_ERRORS as e:
                        code = getattr(e, "code", "")
                        if wait_s is None or (fault_of(code) is not Fault.ROBOT and code not in UNCLEAR):
                            raise
                        self._report_error(code, f"{e}; trying again in {wait_s:g} s")
                    if self._closing.wait(wait_s) or self._generations.residents.active is not None:
                        return
            finally:
                on_done()

        self._submit(work)

    def _start(self, path: Path) -> None:
        resident = self._generations.prepare(path, cancelled=self._closing.is_set, wait=True)
        self._generations.activate_now(resident, UPDATE, instead_of=0)

    def run_deferred(self) -> None:
        """Do what the limit of automatic swaps had put off, once that episode is over. Called again and again."""
        deferred = self._deferred
        if deferred is not None and deferred[0] != self._current_episode():
            self._deferred = None
            self._submit(deferred[1])

    def close(self) -> None:
        """Start nothing more and wait for what is under way: preparations are cancelled; close the generations before."""
        self._closing.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except EXPECTED_ERRORS as e:
                if not self._closing.is_set():
                    self._report_error(str(getattr(e, "code", "RECOVERY_FAILED")), str(e))
            except Exception as e:
                LOG.exception("recovery failed")
                self._report_error("INTERNAL_ERROR", repr(e))

        with contextlib.suppress(RuntimeError):  # closed this moment
            self._executor.submit(guarded)

    # -- one automatic swap an episode: a robot must not be handed to and fro while it carries something ---------------

    def _has_swap_left(self) -> bool:
        episode = self._current_episode()
        count = self._swaps[1] if self._swaps[0] == episode else 0
        return not episode or count < self._config.auto_swaps_per_episode

    def count_swap(self, episode: int) -> None:
        """An automatic swap has happened in an episode: what was drawn for it acts."""
        self._swaps = (episode, (self._swaps[1] if self._swaps[0] == episode else 0) + 1)

    def _swap(self, resident: Resident | OnDisk, cause: str, *, instead_of: int, at: str = "NOW") -> None:
        episode = self._current_episode()
        if self._generations.activate_now(resident, cause, instead_of=instead_of, at=at) is not None:
            self.count_swap(episode)

    # -- lease -----------------------------------------------------------------------------------------------------

    def _after_lease(self, lease: TrialLease) -> None:
        if not self._generations.lease_over(lease):
            return
        silent = lease.over or f"the manager was silent for {lease.lease_s:g} s in a trial"
        if lease.fallback is None:
            self._report_error("LEASE_EXPIRED", f"{silent}, and nothing acted before: the trial goes on")
            return
        if (
            lease.over and not lease.failed and self._current_episode()
        ):  # nothing is wrong: the episode comes to its end
            self._deferred = self._current_episode(), lambda: self._after_lease(lease)
            return
        if not lease.failed and not self._has_swap_left():  # what has failed holds, and must not act again
            self._report_error("AUTO_SWAP_LIMIT", f"{silent}: going back when the episode is over")
            self._deferred = self._current_episode(), lambda: self._after_lease(lease)
            return
        if lease.over:
            LOG.info("%s: going back to %s", lease.over, lease.fallback.version)
        else:
            self._report_error("LEASE_EXPIRED", f"{silent}: going back to {lease.fallback.version}")
        try:
            self._swap(self._in_memory(lease.fallback), LEASE_EXPIRED, instead_of=lease.generation, at="CHUNK")
        except EXPECTED_ERRORS:
            lease.try_again(time.monotonic() + _RETRY_S)
            raise

    def _in_memory(self, resident: Resident | OnDisk) -> Resident | OnDisk:
        """Return the generation, or another of the same bundle if its worker has gone."""
        return self._generations.residents.find(resident.digest) or self._load(resident)

    def _load(self, resident: Resident | OnDisk) -> Resident | OnDisk:
        """Load a bundle; a worker host that is away is waited for while nothing else can act.

        What stands by is on the same host: it is believed once its own line would have been found silent.
        """
        believed_s = time.monotonic() + _LINE_WAITS * self._config.worker_silence_s
        for wait_s in _HOST_WAITS_S:
            try:
                return self._prepare(resident)
            except PolicyNodeError as e:
                if e.code not in _HOST_AWAY or not self._waits_without_policy(wait_s, believed_s):
                    raise
        return self._prepare(resident)

    def _waits_without_policy(self, wait_s: float, believed_s: float) -> bool:
        """Wait; false at once when there is something that acts or (from ``believed_s`` on) may do so, or the node is closing."""
        end_s = time.monotonic() + wait_s
        while time.monotonic() < end_s:
            standby = self._generations.proven_standby()
            may = standby is not None and standby.generation.alive and time.monotonic() > believed_s
            if may or self._generations.residents.active is not None or self._closing.wait(_POLL_S):
                return False
        return True

    def _prepare(self, resident: Resident | OnDisk) -> Resident | OnDisk:
        return self._generations.prepare(resident.path, resident.digest, cancelled=self._closing.is_set, wait=True)

    # -- loss ------------------------------------------------------------------------------------------------------

    def _after_loss(self, lost: Resident, lease: TrialLease | None, why: Loss) -> None:
        while self._generations.swap_pending and not self._closing.wait(_POLL_S):
            pass  # a swap that was under way comes now, or fails
        if self._generations.residents.active is not None:
            return  # the robot has a policy again
        if not self._has_swap_left():
            text = f"{lost.version} was lost ({why}), and this episode has had its automatic swap: holding until it is over"
            self._report_error("AUTO_SWAP_LIMIT", text)
            self._deferred = self._current_episode(), lambda: self._after_loss(lost, lease, why)
            return
        reasons = []
        for candidate in self._candidates(lost, lease, why):
            if self._closing.is_set():
                return
            try:
                self._swap(candidate(), WORKER_LOST, instead_of=0)
                return
            except EXPECTED_ERRORS as e:
                LOG.error("recovery: %s: %s", getattr(e, "code", ""), e)
                reasons.append(f"{getattr(e, 'code', '')}: {e}")
        standby = self._generations.residents.standby
        idle = "nothing stands by" if standby is None else f"{standby.version} stands by, and was never committed"
        text = "; ".join(reasons) or idle
        raise PolicyNodeError("POLICY_LOST", f"{lost.version} was lost ({why}; {text}): holding")

    def _candidates(
        self, lost: Resident, lease: TrialLease | None, why: Loss
    ) -> Iterator[Callable[[], Resident | OnDisk]]:
        """Yield what may act in place of a lost generation, best first."""
        if lease is not None and lease.fallback is not None:
            fallback = lease.fallback
            yield lambda: self._in_memory(fallback)
            return  # never what is on trial again: it has just failed
        if why.code == HOST_LOST or self._may_reload(lost.digest):  # a line says nothing of a policy
            yield lambda: self._load(lost)
        standby = self._generations.proven_standby()
        if standby is not None:
            yield lambda: standby

    def _may_reload(self, digest: str) -> bool:
        now, losses = time.monotonic(), self._losses[digest]
        while losses and now - losses[0] > self._config.reload_window_s:
            losses.popleft()
        losses.append(now)
        return len(losses) <= self._config.reload_attempts
