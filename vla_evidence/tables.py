# SPDX-License-Identifier: Apache-2.0
"""Figures as text for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

_NAMED = 5


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """Return a table in plain text: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        first, *others = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(["  " + first, *others]).rstrip()

    lines = ([title] if title else []) + [line(heads), line(["-" * w for w in widths]), *map(line, rows)]
    return "\n".join(lines + ([f"  {note}"] if note else []))


def share_text(share: tuple[float, float]) -> str:
    """Return a share with its Monte-Carlo standard error."""
    return f"{share[0]:.1%} ± {share[1]:.1%}"


def hours_text(hours: float) -> str:
    """Return a time as people say it."""
    if not math.isfinite(hours):
        return "never"
    for unit, name in ((24.0, "days"), (1.0, "h")):
        if hours >= 2.0 * unit or (unit == 1.0 and hours >= 1.0):
            return f"{hours / unit:,.1f} {name}" if hours < 10.0 * unit else f"{hours / unit:,.0f} {name}"
    return f"{hours * 60.0:.0f} min"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def rate_text(successes: float, episodes: float) -> str:
    """Return a success rate with its counts."""
    return f"{successes:g} of {episodes:g}" + (f" ({successes / episodes:.1%})" if episodes else "")


def listed(robots: Iterable[str]) -> str:
    """Return the first few names, in alphabetical order."""
    names = sorted(robots)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
