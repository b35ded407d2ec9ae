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

from vla_ros.plain import plain


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
