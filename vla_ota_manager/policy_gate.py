# SPDX-License-Identifier: Apache-2.0
"""The way to the policy node: whether it may change what acts now, and how a version on disk is given control."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import PolicyError
from vla_ota_manager.port import OnProgress, PolicyPort, PolicySnapshot, PrepareResult, SwapRequest, SwapResult, absence
from vla_ota_manager.records import Ref
from vla_ota_manager.store.store import Store
from vla_ros.fault import Fault

_CRASHED = frozenset({"GENERATION_LOST", "WORKER_LOST"})
"""The worker has ended since the bundle was prepared."""


class PolicyGate:
    """Asks the policy node, in the engine's thread; permission comes from any.

    ``show`` takes remarks for people; ``report`` keeps the status alive while the policy node loads.
    """

    def __init__(
        self, config: OtaConfig, store: Store, port: PolicyPort, show: Callable[[str], None], report: Callable[[], None]
    ) -> None:
        self._config, self._store, self._port = config, store, port
        self._show, self._report = show, report
        self._permitted_until_s = -math.inf
        self._allowed = True

    def set_permitted(self, permitted: bool | None, lasts_s: float) -> None:
        """Take over ``update_permitted``, true for so long [s]; None = stale or never heard."""
        self._permitted_until_s = time.monotonic() + lasts_s if permitted else -math.inf

    def set_allowed(self, allowed: bool) -> None:
        """Take over the parameter ``update_permitted``."""
        self._allowed = allowed

    def permitted(self) -> bool:
        """Whether a swap to a new version may happen now; fails closed."""
        return self._allowed and (not self._config.require_permission or time.monotonic() < self._permitted_until_s)

    def policy(self) -> PolicySnapshot | None:
        """Return the policy node's status if it is fresh and of a node that is configured, else None."""
        snapshot = self._port.status()
        if snapshot is None or snapshot.unconfigured or snapshot.age_s > self._config.policy_silent_s:
            return None
        return snapshot

    def absence(self) -> str:
        """Say in what way the policy node is not there, after its name."""
        return absence(self._port.status())

    def hindrance(self, *, permitted: bool | None = None, motion: bool = True) -> str:
        """Say what a swap to a new version waits for, "" if for nothing.

        Args:
            permitted: whether it may happen; default: what ``update_permitted`` says.
            motion: whether it waits for motion to be enabled, without which policy_node refuses it.
        """
        snapshot = self.policy()
        if snapshot is None:
            return f"policy_node, which {self.absence()}"
        if not (self.permitted() if permitted is None else permitted):
            return "update_permitted"
        if motion and not snapshot.motion_enabled:
            return "motion: motion_enabled is false or stale"
        return ""

    def activate(self, ref: Ref, request: SwapRequest, interrupted: Callable[[], bool]) -> SwapResult:
        """Give a version on disk control: prepare it if it is not resident, then swap.

        What is to go on trial and has crashed since it was prepared is not prepared again: the policy node's code says so.

        Raises:
            PolicyError: with the reply's code and fault, if it cannot be prepared, or not be loaded in place.
        """
        snapshot = self.policy()
        warm = snapshot is not None and snapshot.is_resident(ref.digest)
        if warm or request.trial:
            result = self._swap(ref, request, interrupted)
            if result.error_code != "NOT_PREPARED" and (request.trial or result.error_code not in _CRASHED):
                return replace(result, warm=warm and result.warm)
        self._show(f"policy_node loads {ref}")
        prepared = self.prepare(ref, lambda _state, _progress: self._report(), interrupted, skip_shadow=True)
        if not prepared.success:
            raise PolicyError(prepared.error_code, prepared.message, f"prepare {ref}", prepared.fault)
        if request.cause != "ROLLBACK" and not self.permitted():  # that may have taken minutes
            return SwapResult(False, "CANCELLED", "update_permitted has been withdrawn", fault=Fault.PERSON)
        return replace(self._swap(ref, request, interrupted), warm=False)

    def prepare(
        self, ref: Ref, on_progress: OnProgress, interrupted: Callable[[], bool], *, skip_shadow: bool
    ) -> PrepareResult:
        """Let the policy node load and check a version on disk beside the running one.

        ``skip_shadow``: for what is urgent, has acted before, or is the way back.
        """
        path, timeout_s = self._store.path_of(ref), self._config.prepare_timeout_s
        return self._port.prepare(path, ref.digest, on_progress, interrupted, timeout_s, skip_shadow=skip_shadow)

    def _swap(self, ref: Ref, request: SwapRequest, interrupted: Callable[[], bool]) -> SwapResult:
        snapshot = self.policy()
        in_place = snapshot is not None and snapshot.load_in_place and not snapshot.is_resident(ref.digest)
        if in_place:
            self._show(f"policy_node loads {ref} in place of what acts, and the robot holds meanwhile")
        load_s = self._config.prepare_timeout_s if in_place else 0.0

        def over() -> bool:
            if in_place:
                self._report()
            return interrupted()

        self._store.fs.point("port.before_swap")
        result = self._port.swap(replace(request, digest=ref.digest, load_s=load_s), over)
        self._store.fs.point("port.after_swap")
        if in_place and result.fault is Fault.BUNDLE:  # it is loaded only now: refused as by a preparation
            raise PolicyError(result.error_code, result.message, f"load {ref} in place", result.fault)
        return result
