# SPDX-License-Identifier: Apache-2.0
"""What the real robots' control loops did, and what of it a fleet must not do to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SILENCE_S = 2.0
"""A policy node that reports nothing for longer has stood still; it reports every 0.5 s."""


@dataclass(frozen=True)
class Loop:
    """What a control loop did since it first moved the arm. ``machines``: missed in a stall that the witness suffered too."""

    robot: str
    ticks: int
    missed: int
    machines: int
    starved: int
    worst_late_ms: float
    holds: Mapping[str, int]
    """Cause → how often, sensors that a busy machine delays left out."""
    longest_silence_s: float
    """Longest time between two statuses, which come at least every 0.5 s."""


def undisturbed(loops: Sequence[Loop]) -> list[str]:
    """Return what disturbed the real robots' motion: nothing that servers and versions do may."""
    problems = []
    for loop in loops:
        if not loop.ticks:
            problems.append(f"{loop.robot} never moved")
        if loop.missed or loop.starved:
            problems.append(f"{loop.robot}: {loop.missed} ticks missed, {loop.starved} starved")
        if loop.holds:
            problems.append(f"{loop.robot} held: {', '.join(sorted(loop.holds))}")
        if loop.longest_silence_s > SILENCE_S:
            problems.append(f"{loop.robot} reported nothing for {loop.longest_silence_s:.1f} s")
    return problems
