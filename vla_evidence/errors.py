# SPDX-License-Identifier: Apache-2.0
"""Errors of this package: one tree, each with a stable code.

::

    EvidenceError (a ValueError)
     ├─ InputError     a count, rate, probability, arm or margin that cannot be
     └─ LogError       a log of a judgement that cannot be read, or says something else than its data do
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

MAX_COUNT = 1 << 53
MAX_NAME_BYTES = 1024


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
    """LOG_SYNTAX, LOG_VALUE, LOG_UNREADABLE, REPLAY_DIFFERS."""


def shown(value: object) -> str:
    """Return a value as messages show it: shortened, whatever it is."""
    try:
        return f"{value!r:.60}"
    except (ValueError, RecursionError):  # an integer of more digits than Python writes, lists in lists without end
        return f"a {type(value).__name__} too long to be shown"


def is_integer(value: object) -> bool:
    """Whether it is an integer; True and False are none."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def check_name(field: str, value: Any) -> str:
    """Return ``value`` if it is a name: text that can be written, not empty and not endless."""
    try:
        if not isinstance(value, str) or not 0 < len(value.encode()) <= MAX_NAME_BYTES:
            raise InputError("INPUT_VALUE", field, f"{shown(value)} must be a name of 1 to {MAX_NAME_BYTES} bytes")
    except UnicodeEncodeError as e:
        raise InputError("INPUT_VALUE", field, f"{shown(value)} is not valid Unicode") from e
    return value


def check_number(field: str, value: Any, code: str = "INPUT_VALUE") -> float:
    """Return ``value`` as a float if it is a finite number."""
    if type(value) is float and math.isfinite(value):
        return value
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(code, field, f"{shown(value)} must be a finite number")
    return number


def check_time(field: str, value: Any) -> float:
    """Return ``value`` if it is a time."""
    if isinstance(value, bool):
        raise InputError("INPUT_VALUE", field, f"{value} must be a time in seconds")
    return check_number(field, value)


def check_probability(field: str, value: float, below: float = 1.0) -> float:
    """Return ``value`` if it lies strictly between 0 and ``below``."""
    number = check_number(field, value, "INPUT_PROBABILITY")
    if not 0.0 < number < below:
        raise InputError("INPUT_PROBABILITY", field, f"{value} must lie strictly between 0 and {below:g}")
    return number


def check_rate(field: str, value: float) -> float:
    """Return ``value`` if it lies between 0 and 1."""
    number = check_number(field, value, "INPUT_RATE")
    if not 0.0 <= number <= 1.0:
        raise InputError("INPUT_RATE", field, f"{value} must lie between 0 and 1")
    return number


def check_margin(field: str, value: float) -> float:
    """Return ``value`` if it lies between 0 and 1, without 1."""
    number = check_number(field, value, "INPUT_MARGIN")
    if not 0.0 <= number < 1.0:
        raise InputError("INPUT_MARGIN", field, f"{value} must lie between 0 and 1")
    return number


def check_counts(field: str, events: float, observations: float) -> None:
    """Refuse counts with ``0 <= events <= observations <= 2^53`` not holding: beyond, a float cannot count."""
    try:
        possible = 0 <= events <= observations <= MAX_COUNT
    except TypeError:
        possible = False
    if not possible:
        raise InputError(
            "INPUT_COUNT", field, f"{shown(events)} successes in {shown(observations)} episodes is impossible"
        )
