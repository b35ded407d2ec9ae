# SPDX-License-Identifier: Apache-2.0
"""Errors of this package: one tree, each with a stable code.

::

    EvidenceError (a ValueError)
     ├─ InputError     a count, rate, probability, arm or margin that cannot be
     └─ LogError       a log of a judgement that cannot be read, or says something else than its data do
"""

from __future__ import annotations

import math
from typing import Any

MAX_COUNT = 1 << 53


class EvidenceError(ValueError):
    """Something that no judgement can be based on. Itself: ANALYSIS_MISSING, OUTPUT_NOT_WRITTEN.

    Attributes:
        code: stable, SCREAMING_SNAKE_CASE; docs/errors.md explains each.
        field: what is wrong: a parameter's name, or a place in a file.
        reason: why, for people.
    """

    def __init__(self, code: str, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.code, self.field, self.reason = code, field, reason


class InputError(EvidenceError):
    """INPUT_RATE, INPUT_COUNT, INPUT_PROBABILITY, INPUT_ARM, INPUT_MARGIN, INPUT_VALUE."""


class LogError(EvidenceError):
    """LOG_SYNTAX, LOG_VALUE, LOG_UNREADABLE, LOG_NOT_WRITTEN, REPLAY_DIFFERS."""


def is_integer(value: object) -> bool:
    """Whether it is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_name(field: str, value: Any) -> str:
    """Return ``value`` if it is a name: text that can be written, and not empty."""
    try:
        if not isinstance(value, str) or not value.encode():
            raise InputError("INPUT_VALUE", field, f"{value!r} is no name")
    except UnicodeEncodeError as e:
        raise InputError("INPUT_VALUE", field, f"{value!r} is not valid Unicode") from e
    return value


def check_time(field: str, value: Any) -> float:
    """Return ``value`` if it is a finite time."""
    try:
        number = math.nan if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError("INPUT_VALUE", field, f"{value!r:.40} is no time")
    return number


def check_probability(field: str, value: float) -> float:
    """Return ``value`` if it lies strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise InputError("INPUT_PROBABILITY", field, f"{value} does not lie strictly between 0 and 1")
    return float(value)


def check_rate(field: str, value: float) -> float:
    """Return ``value`` if it lies between 0 and 1."""
    if not 0.0 <= value <= 1.0:
        raise InputError("INPUT_RATE", field, f"{value} does not lie between 0 and 1")
    return float(value)


def check_margin(field: str, value: float) -> float:
    """Return ``value`` if it lies between 0 and 1, without 1."""
    if not 0.0 <= value < 1.0:
        raise InputError("INPUT_MARGIN", field, f"{value} does not lie between 0 and 1")
    return float(value)


def check_counts(field: str, events: float, observations: float) -> None:
    """Refuse counts with ``0 <= events <= observations <= 2^53`` not holding: beyond, a float cannot count."""
    if not 0 <= events <= observations <= MAX_COUNT:
        raise InputError("INPUT_COUNT", field, f"{str(events)[:30]} of {str(observations)[:30]} cannot be")
