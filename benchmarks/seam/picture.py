# SPDX-License-Identifier: Apache-2.0
"""The arm through its swaps: where the joints were, what was commanded, and how large each jump was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.seam.arm import MovingArm
from benchmarks.seam.replayed import Switch
from vla_policy_node.generations.swapping import Report

# Okabe and Ito: safe for the colour-blind.
_A, _B, _MEASURED, _LIMIT = "#0072B2", "#D55E00", "#333333", "#CC79A7"
_BEFORE_S, _AFTER_S = 2.0, 1.2
_GAP_S = 0.1


def draw(arm: MovingArm, found: list[Switch], reports: list[Report], path: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    channels = arm.contract.channels
    figure = Figure(figsize=(11.0, 9.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(channels) + 1, 1, height_ratios=(*[1.0] * len(channels), 1.2))
    begin_s, end_s = found[0].time_s - _BEFORE_S, found[-1].time_s + _AFTER_S
    for c, (ax, channel) in enumerate(zip(rows, channels, strict=False)):
        _draw_joint(ax, arm, found, {r.generation: r.to_version for r in reports}, c, begin_s, end_s)
        ax.set_ylabel(f"{channel.name} [{channel.unit}]")
        ax.set_xlim(0.0, end_s - begin_s)
        ax.tick_params(labelbottom=c == len(channels) - 1)
    rows[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, fontsize=9, frameon=False)
    rows[len(channels) - 1].set_xlabel("time [s]; a dotted line: a swap")
    largest = min(c.limits.rate for c in channels) * arm.contract.period_s
    _draw_jumps(rows[-1], found, reports, largest)
    for ax in rows:
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{len(found)} swaps between two policies while the arm moves",
        fontsize=13,
        fontweight="bold",
        x=0.01,
        ha="left",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": "vla_ota"})


def _draw_joint(
    ax: Any, arm: MovingArm, found: list[Switch], versions: dict[int, str], c: int, begin_s: float, end_s: float
) -> None:
    inside = [(s - begin_s, q[c]) for s, q in arm.joints if begin_s <= s <= end_s]
    ax.plot(*zip(*inside, strict=True), color=_MEASURED, lw=2.6, alpha=0.35, label="measured")
    ticks = [tick for tick in arm.ticks if begin_s <= tick.stamp_ns / 1e9 <= end_s]
    times = np.array([tick.stamp_ns / 1e9 - begin_s for tick in ticks])
    values = np.array([tick.command[c] for tick in ticks])
    values[1:][np.diff(times) > _GAP_S] = np.nan
    acts = np.array([tick.generation for tick in ticks])
    for colour, (generation, version) in zip((_A, _B), sorted(versions.items()), strict=True):
        shown = np.where(acts == generation, values, np.nan)
        ax.plot(times, shown, color=colour, lw=1.1, label=f"commanded by {version}")
    for switch in found:
        ax.axvline(switch.time_s - begin_s, color=_MEASURED, lw=0.8, ls=":")


def _draw_jumps(ax: Any, found: list[Switch], reports: list[Report], largest: float) -> None:
    at = np.arange(1, len(found) + 1)
    bars = (
        ("both plans apart at the boundary", [s.at_boundary.apart for s in found], _MEASURED, 0.35),
        ("both plans apart at the chosen tick", [s.chosen.apart for s in found], _MEASURED, 0.85),
        ("command, last before to first after (seam_jump)", [r.seam_jump for r in reports], _A, 1.0),
        ("typical step of the second before (typical_step)", [r.typical_step for r in reports], _B, 1.0),
    )
    for i, (label, values, colour, alpha) in enumerate(bars):
        ax.bar(at + 0.2 * (i - 1.5), values, 0.18, color=colour, alpha=alpha, label=label)
    ax.axhline(largest, color=_LIMIT, lw=1.2, label=f"largest step that a command may make, {largest:g} rad")
    ax.set_xticks(at, [f"{n}\n+{s.plan - s.boundary}" for n, s in zip(at, found, strict=True)])
    ax.set_xlabel("swap; below it: ticks after the boundary")
    ax.set_ylabel("jump in one tick [rad]")
    ax.set_ylim(0.0, 1.45 * max(largest, *(max(values) for _, values, _, _ in bars)))
    ax.legend(loc="upper left", ncols=2, fontsize=8, frameon=False)
