# SPDX-License-Identifier: Apache-2.0
"""Pieces of messages for people."""

from __future__ import annotations

from collections.abc import Iterable

_NAMED = 5


def listed(robots: Iterable[str]) -> str:
    """Return the first few names, in alphabetical order."""
    names = sorted(robots)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
