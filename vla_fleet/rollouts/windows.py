# SPDX-License-Identifier: Apache-2.0
"""Maintenance windows: when robots may be given a new version. Written ``mon-fri 22:00-04:00`` in a named time zone."""

from __future__ import annotations

import datetime
import re
import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass

from vla_fleet.errors import InputError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(r"(?:([a-z,-]+) )?(\d\d):(\d\d)-(\d\d):(\d\d)")
_DAY_MINUTES = 24 * 60


@dataclass(frozen=True)
class Window:
    """A time of the week.

    Attributes:
        days: on which it begins, 0 = Monday.
        start_min, end_min: minutes after midnight; an end that is not after the start lies on the next day.
    """

    days: frozenset[int]
    start_min: int
    end_min: int

    def contains(self, day: int, minute: int) -> bool:
        """Whether a local time lies in it."""
        if self.start_min < self.end_min:
            return day in self.days and self.start_min <= minute < self.end_min
        return (day in self.days and minute >= self.start_min) or ((day - 1) % 7 in self.days and minute < self.end_min)


def parse_window(text: str) -> Window:
    """Read ``[DAYS ]HH:MM-HH:MM``; DAYS are ``mon``, ``mon-fri`` or ``mon,wed,sat-sun``, or every day if left out.

    Raises:
        InputError: WINDOW_INVALID.
    """
    found = _WINDOW.fullmatch(text.strip().lower())
    try:
        if found is None:
            raise ValueError("must be like 'mon-fri 22:00-04:00'")
        start, end = (60 * _hour(found[i]) + _minute(found[i + 1]) for i in (2, 4))
        return Window(_days(found[1] or "mon-sun"), start, end % _DAY_MINUTES)
    except ValueError as e:
        raise InputError("WINDOW_INVALID", f"maintenance window {text[:60]!r}: {e}") from e


def zone_of(name: str) -> zoneinfo.ZoneInfo:
    """Return a time zone by its name, for example ``Europe/Berlin``.

    Raises:
        InputError: TIME_ZONE_UNKNOWN.
    """
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as e:
        text = f"no time zone {name[:60]!r} on this machine; name one as 'Europe/Berlin' or 'UTC'"
        raise InputError("TIME_ZONE_UNKNOWN", text) from e


def is_open(windows: Sequence[Window], zone: datetime.tzinfo, now_s: float) -> bool:
    """Whether robots may be given a new version now; without any window they always may."""
    local = datetime.datetime.fromtimestamp(now_s, zone)
    minute = 60 * local.hour + local.minute
    return not windows or any(window.contains(local.weekday(), minute) for window in windows)


def _days(text: str) -> frozenset[int]:
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"{part!r} is no day: {', '.join(DAYS)}")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        days |= {(begin + step) % 7 for step in range((end - begin) % 7 + 1)}
    return frozenset(days)


def _hour(text: str) -> int:
    if int(text) > 24:
        raise ValueError(f"{text} is no hour")
    return int(text)


def _minute(text: str) -> int:
    if int(text) > 59:
        raise ValueError(f"{text} is no minute")
    return int(text)
