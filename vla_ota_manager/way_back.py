# SPDX-License-Identifier: Apache-2.0
"""The way back to an earlier version, for a verdict and for an operator alike.

It needs no disk that can be written. A version that cannot be loaded any more is skipped for the next older good one.
"""

from __future__ import annotations

import time
from dataclasses import replace

from vla_ota_manager.context import Context
from vla_ota_manager.errors import PolicyError
from vla_ota_manager.port import SwapRequest, SwapResult
from vla_ota_manager.records import Event, Ref
from vla_ros.fault import Fault

_UNCLEAR = frozenset({"LOAD_FAILED", "LOAD_TIMEOUT", "PREPARE_FAILED", "WORKER_DIED"})
"""The machine's fault or the bundle's: the bundle's if it comes three times in a row."""
_TRIES = 3


class WayBack:
    """One rollback, from its beginning until an earlier version acts.

    ``older``: what was committed before ``target`` will do where ``target`` cannot be loaded; ``at``: boundary of the swap.
    """

    def __init__(self, context: Context, target: Ref, *, older: bool, at: str = "") -> None:
        self._ctx, self._store = context, context.store
        self._targets = [target, *(self._older_than(target) if older else ())]
        self._request = SwapRequest(
            target.digest,
            at=at or context.config.rollback_at,
            cause="ROLLBACK",
            timeout_s=context.config.swap_timeout_s,
        )
        self._skipped: dict[str, SwapResult] = {}
        self._announced: set[str] = set()
        self.ref = target
        """What was asked for last: what acts, once that has succeeded."""
        self.begun = time.monotonic()
        self.skipped = ""
        """What could not be loaded, in words; empty = everything could."""

    def _older_than(self, target: Ref) -> list[Ref]:
        """Return the good versions on disk that were committed before a version, the latest first."""
        state = self._store.state
        line = [*state.lineage, *([state.committed] if state.committed is not None else [])]
        digests = [ref.digest for ref in line]
        if target.digest not in digests:
            return []
        snapshot = self._ctx.gate.policy()
        left = {snapshot.active_digest if snapshot is not None else "", state.trial.ref.digest if state.trial else ""}
        return [
            ref
            for ref in reversed(line[: digests.index(target.digest)])
            if self._store.has(ref) and ref.digest not in left and not state.blocks(ref.name, ref.version, ref.digest)
        ]

    def take(self) -> SwapResult:
        """Ask once. Without success it can be asked again: what could not be loaded is tried again after everything else."""
        for ref in self._targets:
            if ref.digest not in self._skipped:
                self.ref = ref
                result, loadable = self._ask_for(ref)
                if loadable:
                    return result
                self._skip(ref, result)
        self.ref = self._targets[0]
        result = self._skipped[self.ref.digest]
        self._skipped.clear()
        return result

    def _ask_for(self, ref: Ref) -> tuple[SwapResult, bool]:
        """Return what came of it, and whether it may come to more if it is asked again."""
        refused = self._leave_trial(ref)
        if refused is not None:
            return refused, True
        for _ in range(_TRIES):
            try:
                return self._ctx.gate.activate(ref, self._request, self._ctx.halted), True
            except PolicyError as e:
                result = SwapResult(False, e.code, e.reason, fault=e.fault)
            if result.error_code not in _UNCLEAR:
                break
        return result, result.fault is not Fault.BUNDLE

    def _leave_trial(self, ref: Ref) -> SwapResult | None:
        """Let the committed version act before another one is loaded: a trial needs both places in policy_node's memory.

        Returns:
            Why that has to be asked for again; None: there is room, or this way none can be made.
        """
        snapshot, committed = self._ctx.gate.policy(), self._store.state.committed
        if snapshot is None or committed is None or not snapshot.on_trial:
            return None
        if snapshot.is_resident(ref.digest) or not snapshot.is_resident(committed.digest):
            return None
        try:
            result = self._ctx.gate.activate(committed, self._request, self._ctx.halted)
        except PolicyError:
            return None
        if result.fault in (Fault.NONE, Fault.BUNDLE):
            return None
        return replace(result, message=f"leave the trial for {committed}: {result.message}")

    def _skip(self, ref: Ref, result: SwapResult) -> None:
        """Publish, once a version, that it cannot be gone back to."""
        self._skipped[ref.digest] = result
        if ref.digest in self._announced:
            return
        self._announced.add(ref.digest)
        what = f"{ref} cannot be loaded: {result.error_code} {result.message}"
        self.skipped = f"{self.skipped}; {what}" if self.skipped else what
        remaining = [other.version for other in self._targets if other.digest not in self._skipped]
        then = f"going back to {remaining[0]} instead" if remaining else "there is no older version to go back to"
        name = self._store.state.state.name
        self._ctx.announce(
            Event(self._ctx.wall_clock(), "", name, name, ref.version, result.error_code, f"{what}; {then}")
        )
