# SPDX-License-Identifier: Apache-2.0
"""What the update engine needs of a policy node. ``ros/policy_port.py`` implements it over ROS, the tests over a file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vla_ota_manager.errors import PolicyError
from vla_ros.fault import Fault

OnProgress = Callable[[str, float], None]
"""Called with the preparation's state (QUEUED, LOADING, DIGEST, GOLDEN, WARM_UP, SHADOW, READY) and its progress, 0 to 1."""
Cancelled = Callable[[], bool]
"""Asked several times a second by a blocking call; true: stop waiting and return."""


@dataclass(frozen=True)
class PolicySnapshot:
    """The last PolicyStatus that arrived, as the engine needs it. Empty strings mean none or unknown."""

    age_s: float
    """Time since it arrived [s], by the monotonic clock; inf: the policy node was never configured while this port listened."""
    boot_id: str
    generation: int
    active_digest: str
    active_version: str = ""
    standby_digest: str = ""
    prepared_digest: str = ""
    load_in_place: bool = False
    """There is room for one version: a swap loads in the place of what acts, and what is prepared was only checked on disk."""
    holding: bool = False
    hold_latched: bool = False
    hold_reason: str = ""
    on_trial: bool = False
    episode_id: str = ""
    running: bool = True
    """The active generation commands the robot, or holds; false while motion is disabled or the node is not active."""
    motion_enabled: bool = True
    """Else policy_node refuses every swap but a rollback's."""
    last_swap_cause: str = ""
    """Cause in the SwapReport of the active generation: UPDATE, ROLLBACK, LEASE_EXPIRED or WORKER_LOST; it comes about a second
    after the swap and is empty until then."""
    last_swap_stamp_s: float = math.inf
    """First action after that swap, by the clock that stamps scores [s]: what acted before has an older report as well."""
    experiment: str = ""
    """For which it draws the version of each episode."""
    draw_error_code: str = ""
    """Why it does not, or did not for the last episode: code, and in words."""
    draw_message: str = ""
    error_code: str = ""
    """What went wrong there last, also if the status no longer says so."""
    error_text: str = ""
    error_heard_s: float = -math.inf
    """When this port heard of that, monotonic [s]."""
    unconfigured: str = ""
    """The policy node is there and not configured: it runs nothing, and this is what it says of that. The other fields are
    those of the last status before."""

    def is_resident(self, digest: str) -> bool:
        """Whether a swap to this bundle needs no loading."""
        prepared = "" if self.load_in_place else self.prepared_digest
        return bool(digest) and digest in (self.active_digest, self.standby_digest, prepared)


def absence(snapshot: PolicySnapshot | None) -> str:
    """Say in what way a policy node that cannot be asked anything is not there, after its name."""
    if snapshot is None:
        return "has not been heard yet"
    return snapshot.unconfigured or "is silent"


@dataclass(frozen=True)
class PrepareResult:
    """Reply of PrepareModel."""

    success: bool
    error_code: str = ""
    message: str = ""
    fault: Fault = Fault.NONE


@dataclass(frozen=True)
class SwapRequest:
    """Request of SwapModel; ``digest`` names a resident generation."""

    digest: str
    at: str = "CHUNK"
    expected_active_digest: str = ""
    trial: bool = False
    lease_s: float = 0.0
    cause: str = "UPDATE"
    timeout_s: float = 30.0
    load_s: float = 0.0
    """Longest time beyond that which loading in place may take [s]; 0: nothing is loaded for it."""


@dataclass(frozen=True)
class SwapResult:
    """Reply of SwapModel. ``success`` is also true if the generation asked for already was active."""

    success: bool
    error_code: str = ""
    message: str = ""
    active_version: str = ""
    active_digest: str = ""
    generation: int = 0
    swap_latency_s: float = 0.0
    warm: bool = False
    stamp_s: float = 0.0
    """First action of the generation that acts now, by the clock that stamps scores [s]; 0 = unknown."""
    fault: Fault = Fault.NONE

    @classmethod
    def failed(cls, error: PolicyError) -> SwapResult:
        """Return what came of a swap to a bundle that could not be prepared."""
        return cls(False, error.code, error.message, fault=error.fault)

    @property
    def may_succeed_later(self) -> bool:
        """Whether it may still have happened, or succeed if it is asked for again."""
        return self.fault in (Fault.BUSY, Fault.PERSON)


class PolicyPort(Protocol):
    """The policy node as the engine sees it.

    ``status`` never blocks. ``prepare`` and ``swap`` block until done, timed out or cancelled. They return a result with code and
    fault (``POLICY_ABSENT`` and BUSY when nobody answers, ``CANCELLED`` and PERSON, or the policy node's own) and never raise for
    what the other side did.
    A swap that times out may still happen: the engine looks at ``status`` and asks again, which is idempotent by digest.
    All calls come from the engine's thread, and so must the calls of ``on_progress`` and ``cancelled``.
    """

    def status(self) -> PolicySnapshot | None:
        """Return the last status, or None if none ever came."""
        ...

    def prepare(
        self,
        bundle_path: Path,
        digest: str,
        on_progress: OnProgress,
        cancelled: Cancelled,
        timeout_s: float,
        *,
        skip_shadow: bool,
    ) -> PrepareResult:
        """Load a bundle beside the running one, check it, warm it up and let it go through its shadow."""
        ...

    def swap(self, request: SwapRequest, cancelled: Cancelled) -> SwapResult:
        """Activate a resident generation at a boundary."""
        ...
