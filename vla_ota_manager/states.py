# SPDX-License-Identifier: Apache-2.0
"""The states of an update: names and numbers as in ``msg/ModelStatus.msg``, and which may follow which.

``docs/update_states.md`` says for each of them what is on disk and what a crash in it leads to.
"""

from __future__ import annotations

from enum import IntEnum


class UpdateState(IntEnum):
    """State of the update in progress, or how the last one ended."""

    IDLE = 0
    CHECKING = 1
    FETCHING = 2
    VERIFYING = 3
    INSTALLED = 4
    PREPARING = 5
    SHADOW = 6
    SWAPPING = 7
    TRIAL = 8
    COMMITTED = 9
    REJECTED = 10
    CANCELLED = 11
    ROLLING_BACK = 12
    ROLLED_BACK = 13
    FAILED = 14


_S = UpdateState
_STOPPED = frozenset({_S.REJECTED, _S.CANCELLED, _S.FAILED})

TRANSITIONS: dict[UpdateState, frozenset[UpdateState]] = {
    # ROLLING_BACK out of rest: an operator's rollback belongs to no update
    _S.IDLE: frozenset({_S.CHECKING, _S.ROLLING_BACK, _S.CANCELLED}),
    _S.CHECKING: _STOPPED | {_S.FETCHING, _S.VERIFYING},
    _S.FETCHING: _STOPPED | {_S.VERIFYING, _S.CHECKING},
    _S.VERIFYING: _STOPPED | {_S.INSTALLED, _S.COMMITTED, _S.FETCHING, _S.CHECKING},
    _S.INSTALLED: _STOPPED | {_S.PREPARING, _S.CHECKING, _S.ROLLING_BACK},
    _S.PREPARING: _STOPPED | {_S.SHADOW, _S.SWAPPING, _S.INSTALLED},
    _S.SHADOW: _STOPPED | {_S.SWAPPING, _S.INSTALLED},
    _S.SWAPPING: frozenset({_S.TRIAL, _S.FAILED, _S.ROLLING_BACK, _S.ROLLED_BACK}),
    _S.TRIAL: frozenset({_S.COMMITTED, _S.ROLLING_BACK, _S.ROLLED_BACK, _S.FAILED}),
    _S.COMMITTED: frozenset({_S.CHECKING, _S.ROLLING_BACK, _S.CANCELLED}),
    _S.REJECTED: frozenset({_S.CHECKING, _S.ROLLING_BACK, _S.CANCELLED}),
    _S.CANCELLED: frozenset({_S.CHECKING, _S.ROLLING_BACK, _S.CANCELLED}),
    _S.ROLLING_BACK: frozenset({_S.ROLLED_BACK, _S.FAILED}),
    _S.ROLLED_BACK: frozenset({_S.CHECKING, _S.ROLLING_BACK, _S.CANCELLED}),
    _S.FAILED: frozenset({_S.CHECKING, _S.ROLLING_BACK, _S.CANCELLED}),
}
"""Every transition that the engine may make; any other one is a defect and raises."""

PIPELINE = (_S.CHECKING, _S.FETCHING, _S.VERIFYING, _S.INSTALLED, _S.PREPARING, _S.SHADOW)
"""States in which an update can be cancelled: nothing has changed for the robot yet."""

RESTING = frozenset({_S.IDLE, _S.COMMITTED, _S.REJECTED, _S.CANCELLED, _S.ROLLED_BACK, _S.FAILED, _S.INSTALLED})
"""States in which an update may end (INSTALLED: only with ``activate=false``)."""


def check_transition(old: UpdateState, new: UpdateState) -> None:
    """Raise ``ValueError`` for a transition that the table does not have."""
    if new is not old and new not in TRANSITIONS[old]:
        raise ValueError(f"no transition from {old.name} to {new.name}")
