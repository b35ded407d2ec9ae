# SPDX-License-Identifier: Apache-2.0
"""Drawings over time as shapes in a box of 1000 by 240; the template makes SVG of them, with labels beside it as text."""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 1000.0, 240.0
COLORS = 8
"""Of ``page.css``: ``c0`` to ``c7``."""
_TICKS = 5


@dataclass(frozen=True)
class Shape:
    """A path with the class that paints it: ``line cN``, ``area cN``, ``band cN`` or ``limit cN``."""

    style: str
    path: str


@dataclass
class Chart:
    """What a template needs."""

    title: str
    words: str
    """The same for those who cannot see it."""
    x: list[str]
    """Labels at equal distances, left to right."""
    y: list[str]
    """Labels at equal distances, from the top down."""
    shapes: list[Shape] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    """Class and text."""


def times(begin_s: float, end_s: float) -> list[str]:
    """Return labels for moments between two times [s since 1970 UTC]."""
    pattern = "%H:%M" if end_s - begin_s <= 2 * 86400.0 else "%b %d"
    moments = (begin_s + (end_s - begin_s) * step / (_TICKS - 1) for step in range(_TICKS))
    return [datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime(pattern) for moment in moments]


def since(end_s: float) -> list[str]:
    """Return labels for times up to ``end_s`` after a beginning [s]."""
    units = ((3 * 86400.0, 86400.0, "d"), (2 * 3600.0, 3600.0, "h"), (0.0, 60.0, "min"))
    unit_s, name = next((unit_s, name) for least_s, unit_s, name in units if end_s >= least_s)
    moments = (end_s * step / (_TICKS - 1) for step in range(_TICKS))
    return [f"{round(moment / unit_s, 1):g} {name}" for moment in moments]


def counts(largest: int) -> tuple[float, list[str]]:
    """Return the top of an axis for whole numbers up to ``largest``, and its labels from the top down."""
    step = next(
        digit * 10**power
        for power in range(12)
        for digit in (1, 2, 5)
        if digit * 10**power * (_TICKS - 1) >= max(1, largest)
    )
    return float(step * (_TICKS - 1)), [f"{step * tick:,}" for tick in reversed(range(_TICKS))]


def percents() -> list[str]:
    """Return labels from 100 % down."""
    return ["100%", "75%", "50%", "25%", "0%"]


def stacked(columns: Sequence[Sequence[int]], top: float) -> list[str]:
    """Return areas that lie on each other, a path for each column of counts at moments that lie equally far apart.

    A count stays as it is until the next moment: each moment is drawn twice, before and after.
    """
    if not columns:
        return []
    last = len(columns[0]) - 1
    xs = [0.0, *(step / last for step in range(1, last + 1) for _ in range(2))]
    paths, floor = [], [0] * len(xs)
    for column in columns:
        own = [column[0], *(count for pair in itertools.pairwise(column) for count in pair)]
        ceiling = [below + count for below, count in zip(floor, own, strict=True)]
        paths.append(band(floor, ceiling, 0.0, top, xs))
        floor = ceiling
    return paths


def band(low: Sequence[float], high: Sequence[float], bottom: float, top: float, xs: Sequence[float]) -> str:
    """Return the area between two lines; ``xs``: 0 to 1."""
    there = _points(xs, high, bottom, top)
    back = list(_points(xs, low, bottom, top))[::-1]
    return "M" + "L".join([*there, *back]) + "Z"


def line(values: Sequence[float], bottom: float, top: float, xs: Sequence[float]) -> str:
    """Return a line; ``xs``: 0 to 1."""
    return "M" + "L".join(_points(xs, values, bottom, top))


def decades(lowest: float, highest: float) -> tuple[int, int, list[str]]:
    """Return powers of ten around two positive numbers (logarithms to base 10 go in), and labels from the top down."""
    bottom, top = math.floor(lowest), max(math.ceil(highest), math.floor(lowest) + 1)
    step = max(1, math.ceil((top - bottom) / _TICKS))
    top = bottom + step * math.ceil((top - bottom) / step)
    return bottom, top, [_power(power) for power in range(top, bottom - 1, -step)]


def _power(power: int) -> str:
    return f"{10**power:,}" if 0 <= power <= 6 else f"{10.0**power:g}"


def _points(xs: Iterable[float], ys: Iterable[float], bottom: float, top: float) -> Iterable[str]:
    for x, y in zip(xs, ys, strict=True):
        height = (min(max(y, bottom), top) - bottom) / (top - bottom)
        yield f"{WIDTH * x:.1f} {HEIGHT * (1.0 - height):.1f}"
