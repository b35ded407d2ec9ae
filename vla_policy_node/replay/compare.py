# SPDX-License-Identifier: Apache-2.0
"""Where the actions of two policies differ, or those of a policy from the recorded commands. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_policy_node.contract.model import Channel
from vla_policy_node.replay.replay import Floats, Replayed

_WORST = 3


@dataclass(frozen=True)
class Difference:
    """One channel, in its unit; NaN: there was nothing to compare with."""

    channel: str
    unit: str
    mean: float
    p95: float
    largest: float
    step: float  # 95 % of the first policy's own steps from one action to the next are smaller: the scale to judge by
    worst_s: tuple[float, ...]  # chunks that differ most, worst first [s since the recording's begin]


@dataclass(frozen=True)
class Comparison:
    """Two sides, channel by channel."""

    title: str
    differences: tuple[Difference, ...]
    absolute: Floats  # [N, n, C]
    compared: int  # actions


def between(replayed: Replayed, channels: Sequence[Channel], title: str, one: int, other: int) -> Comparison:
    """Compare two bundles of a replay."""
    absolute = np.abs(replayed.actions[one] - replayed.actions[other])
    return _comparison(replayed, channels, title, one, absolute)


def with_commands(replayed: Replayed, channels: Sequence[Channel], title: str, one: int) -> Comparison:
    """Compare a bundle with what the robot was commanded; where it was not, nothing is compared."""
    actions = replayed.actions[one]
    times = action_times(replayed)
    commands = np.stack([commanded(replayed, c, times) for c in range(len(channels))], axis=-1)
    return _comparison(replayed, channels, title, one, np.abs(actions - commands))


def action_times(replayed: Replayed) -> Floats:
    """Return when each action is meant to act ``[N, n]`` [s]: action i is due i periods after its observation."""
    steps = np.arange(replayed.actions[0].shape[1])
    times: Floats = replayed.times_s[:, None] + steps[None, :] * replayed.period_s
    return times


def commanded(replayed: Replayed, channel: int, times_s: Floats) -> Floats:
    """Return the command nearest to each time; NaN where none lies within a period and a half."""
    known, values = replayed.command_times_s[channel], replayed.commands[channel]
    if not len(known):
        return np.full(times_s.shape, np.nan)
    right = np.clip(np.searchsorted(known, times_s), 1, max(1, len(known) - 1))
    left = right - 1
    right = np.minimum(right, len(known) - 1)
    nearest = np.where(np.abs(known[left] - times_s) <= np.abs(known[right] - times_s), left, right)
    near = np.abs(known[nearest] - times_s) <= 1.5 * replayed.period_s
    found: Floats = np.where(near, values[nearest], np.nan)
    return found


def _comparison(replayed: Replayed, channels: Sequence[Channel], title: str, one: int, absolute: Floats) -> Comparison:
    found = []
    for c, channel in enumerate(channels):
        values, steps = absolute[:, :, c], np.abs(np.diff(replayed.actions[one][:, :, c], axis=1))
        step = float(np.percentile(steps, 95)) if steps.size else 0.0
        known = values[np.isfinite(values)]
        if not known.size:
            found.append(Difference(channel.name, channel.unit, np.nan, np.nan, np.nan, step, ()))
            continue
        of_chunks = np.max(np.where(np.isfinite(values), values, -1.0), axis=1)
        order = [int(i) for i in np.argsort(-of_chunks, kind="stable")[:_WORST] if of_chunks[i] > 0]
        found.append(
            Difference(
                channel.name,
                channel.unit,
                float(known.mean()),
                float(np.percentile(known, 95)),
                float(known.max()),
                step,
                tuple(round(float(replayed.times_s[i]), 3) for i in order),
            )
        )
    return Comparison(title, tuple(found), absolute, int(np.isfinite(absolute).all(axis=2).sum()))


def table(comparison: Comparison) -> str:
    """Return the comparison for people."""
    head = ("channel", "mean", "95 %", "largest", "unit", "a step", "largest at")
    rows: list[tuple[str, ...]] = [head]
    for d in comparison.differences:
        at = ", ".join(f"{t:.2f} s" for t in d.worst_s) or "-"
        numbers = [f"{value:.4g}" if np.isfinite(value) else "-" for value in (d.mean, d.p95, d.largest)]
        rows.append((d.channel, *numbers, d.unit, f"{d.step:.4g}", at))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([f"{comparison.title} ({comparison.compared} actions)", *lines])
