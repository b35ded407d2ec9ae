# SPDX-License-Identifier: Apache-2.0
"""Errors of the policy node. Every one carries a stable ``code`` and a text for people.

::

    PolicyNodeError
    ├── ContractError    the robot contract cannot be used, or a bundle does not fit it (file and key in the text)
    ├── ObservationError a message cannot become a feature
    ├── ControlError     the control process
    └── WorkerError      a worker process
"""

from __future__ import annotations

from vla_ros.fault import Fault
from vla_ros.plain import plain

_FAULTS = {
    Fault.ROBOT: {
        "CLOSED", "CONTROL_LOST", "CONTROL_UNRESPONSIVE", "INACTIVE", "INTERNAL_ERROR", "NOT_CONFIGURED", "NO_FREE_SLOT",
        "OUT_OF_MEMORY", "REMOTE_PROTOCOL", "WORKER_CACHE_FULL", "WORKER_HOST_INVALID",
        "WORKER_HOST_LOST", "WORKER_HOST_REFUSED", "WORKER_HOST_UNREACHABLE", "WORKER_START_FAILED", "WORKER_TLS_INVALID",
    },
    Fault.BUSY: {"PREPARE_IN_PROGRESS", "SHADOW_INCOMPLETE", "SWAP_IN_PROGRESS", "SWAP_TIMEOUT", "TRIAL_RUNNING"},
    Fault.PERSON: {
        "CANCELLED", "CAUSE_UNKNOWN", "DURATION_INVALID", "EMPTY_REQUEST", "EXPECTATION_FAILED", "MOTION_DISABLED",
        "NOT_PREPARED", "SUPERSEDED", "SWAP_BOUNDARY_UNKNOWN",
    },
}  # fmt: skip
_FAULT_OF = {code: fault for fault, codes in _FAULTS.items() for code in codes}
UNCLEAR = frozenset({"LOAD_TIMEOUT", "WORKER_DIED"})
"""Blamed on the bundle, and may be the machine's fault: the bundle's if it comes again."""


def fault_of(code: str) -> Fault:
    """Return whose fault a refused preparation or swap is; the bundle's, and its policy's own codes, are all others."""
    return _FAULT_OF.get(code, Fault.BUNDLE) if code else Fault.NONE


class PolicyNodeError(Exception):
    """Root of the package's errors; ``message`` is one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(plain(message))
        self.code = code

    @property
    def message(self) -> str:
        """The text for people, without the code."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[type[PolicyNodeError], tuple[str, str]]:
        return type(self), (self.code, self.message)


class ContractError(PolicyNodeError):
    """The robot contract is malformed, or a bundle does not fit it."""

    others: tuple[ContractError, ...] = ()
    """What else is wrong, as far as the parser got."""


class ObservationError(PolicyNodeError):
    """A message does not hold what the contract promises of its topic."""


class ControlError(PolicyNodeError):
    """The control process could not be started, does not answer, or refused."""


class WorkerError(PolicyNodeError):
    """A worker process could not be started, could not load its bundle, or was lost."""


def duration(name: str, value_s: float, default_s: float) -> float:
    """Return a duration that came in a request [s]; 0 = ``default_s``. Raises PolicyNodeError DURATION_INVALID."""
    if not 0.0 <= value_s <= 86400.0:  # also NaN
        raise PolicyNodeError("DURATION_INVALID", f"{name} is {value_s}, must be 0 (the default) to 86400 s")
    return value_s or default_s
