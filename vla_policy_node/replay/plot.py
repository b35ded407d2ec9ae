# SPDX-License-Identifier: Apache-2.0
"""The replay as a picture: a row a channel; the commands and what each policy wanted, and how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_node.contract.model import Channel
from vla_policy_node.errors import PolicyNodeError
from vla_policy_node.replay.compare import Comparison, action_times
from vla_policy_node.replay.replay import Replayed

# Okabe and Ito: safe for the colour-blind.
_A, _B, _COMMANDS, _DIFFERENCE = "#0072B2", "#D55E00", "#999999", "#333333"
_ROW_INCHES = 1.7


def draw(replayed: Replayed, channels: Sequence[Channel], comparison: Comparison, path: Path) -> None:
    """Write the picture as PNG. Raises PolicyNodeError ANALYSIS_MISSING without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise PolicyNodeError("ANALYSIS_MISSING", f"{e}: pip install matplotlib, or leave out --out") from e
    rows = len(channels)
    figure = Figure(figsize=(11.0, 1.2 + _ROW_INCHES * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, sharex=True, squeeze=False, width_ratios=(2.2, 1.0))
    for c, channel in enumerate(channels):
        _draw_values(axes[c, 0], replayed, channel, c)
        _draw_difference(axes[c, 1], replayed, comparison, channel, c)
    axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=9, frameon=False)
    axes[0, 1].set_title("difference", fontsize=10)
    for ax in axes[-1]:
        ax.set_xlabel("time in the recording [s]")
    figure.suptitle(_headline(comparison), fontsize=12, fontweight="bold", x=0.01, ha="left")
    figure.savefig(path, metadata={"Software": "vla_ota"})


def _draw_values(ax: Any, replayed: Replayed, channel: Channel, c: int) -> None:
    if len(replayed.commands[c]):
        style = {"color": _COMMANDS, "lw": 3.0, "alpha": 0.7, "label": "commanded"}
        ax.plot(*_broken(replayed.command_times_s[c], replayed.commands[c], 3 * replayed.period_s), **style)
    for i, manifest in enumerate(replayed.manifests):
        name = f"{'AB'[i]}: {manifest.name} {manifest.version}"
        style = {"color": (_A, _B)[i], "lw": 1.2, "ls": ("-", "--")[i], "label": name}
        ax.plot(*_chunks(replayed, replayed.actions[i][:, :, c]), **style)
    ax.set_ylabel(f"{channel.name} [{channel.unit}]")
    ax.spines[["top", "right"]].set_visible(False)


def _draw_difference(ax: Any, replayed: Replayed, comparison: Comparison, channel: Channel, c: int) -> None:
    ax.plot(*_chunks(replayed, comparison.absolute[:, :, c]), color=_DIFFERENCE, lw=1.0)
    same_unit = [d.largest for d in comparison.differences if d.unit == channel.unit and np.isfinite(d.largest)]
    ax.set_ylim(0.0, 1.05 * max(same_unit, default=0.0) or 1.0)  # one unit, one scale: it shows which channel differs
    ax.spines[["top", "right"]].set_visible(False)


def _headline(comparison: Comparison) -> str:
    """Name the channel that differs most for its own steps."""
    known = [d for d in comparison.differences if np.isfinite(d.largest)]
    worst = max(known, key=lambda d: d.largest / max(d.step, 1e-12), default=None)
    if worst is None or not worst.largest:
        return f"{comparison.title}: {'no difference' if known else 'nothing to compare'}"
    at = f" at {worst.worst_s[0]:.1f} s" if worst.worst_s else ""
    return f"{comparison.title}: {worst.channel} differs most, by up to {worst.largest:.3g} {worst.unit}{at}"


def _chunks(replayed: Replayed, values: Any) -> tuple[Any, Any]:
    """Return times and values ``[N, n]`` as one line that is broken between two chunks."""
    times, nothing = action_times(replayed), np.full((len(values), 1), np.nan)
    return np.hstack([times, nothing]).ravel(), np.hstack([values, nothing]).ravel()


def _broken(times: Any, values: Any, gap_s: float) -> tuple[Any, Any]:
    """Leave a gap where nothing is known, rather than a straight line."""
    breaks = np.flatnonzero(np.diff(times) > gap_s) + 1
    return np.insert(times, breaks, np.nan), np.insert(values, breaks, np.nan)
