# SPDX-License-Identifier: Apache-2.0
"""The exercises' plots, drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vla_evidence.analysis import analysis_packages
from vla_evidence.simulate.rollouts import OUTCOMES
from vla_evidence.tables import hours_text

if TYPE_CHECKING:
    from vla_evidence.planning.stopping import Stopping
    from vla_evidence.simulate.rollouts import Rollouts
    from vla_evidence.simulate.rules import Rule

# Okabe and Ito: safe for the colour-blind.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
_COLOURS = (BLUE, GREEN, ORANGE, RED, GREY, "#CC79A7")
_TWO_SIGMA = 2.0
_DARK = 1.35
"""Decades from the middle of the colour map beyond which it is dark."""
_ON_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
Floats = NDArray[np.float64]


@contextmanager
def _drawing(path: Path, columns: int = 1, size: tuple[float, float] = (7.5, 4.2)) -> Iterator[list[Any]]:
    """Yield axes in a row; write the PNG at the end."""
    with analysis_packages():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, columns)))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, alpha=0.25)
        ax.set_prop_cycle(color=_COLOURS)
    yield axes
    figure.savefig(path, metadata={"Software": "vla-evidence"})


def power_curves(
    curves: Mapping[str, Floats], episodes_a_look: float, power: float, needed: float, robots: int, path: Path
) -> None:
    """Draw P(difference found) against episodes on each robot."""
    with _drawing(path) as (ax,):
        for label, values in curves.items():
            ax.plot(episodes_a_look * np.arange(1, len(values) + 1), values, label=label, linewidth=2)
        ax.axhline(power, color=GREY, linewidth=1, linestyle=":")
        ax.axvline(needed, color=GREY, linewidth=1, linestyle=":")
        ax.annotate(
            f"{needed:.0f} episodes: {power:.0%}", (needed, power), (6, -14), textcoords="offset points", color=GREY
        )
        ax.set(xlabel=f"episodes on each of {robots} robots, both versions together", ylabel="P(difference found)")
        ax.set(ylim=(0, 1.02), xlim=(0, None))
        ax.legend(loc="lower right", frameon=False)


def rule_errors(pairs: Sequence[Rule], by_robot: Sequence[Rule], alpha: float, path: Path) -> None:
    """Draw the false alarms of every rule, in both situations, beside what was promised."""
    with _drawing(path, 2, (9.5, 4.2)) as axes:
        titles = ("both versions on each robot", "one version on each robot, robots differ")
        for ax, rules, title in zip(axes, (pairs, by_robot), titles, strict=True):
            labels = [f"{rule.rule}\n{_looks(rule.looks)}" for rule in rules]
            shares = np.array([rule.false_alarm for rule in rules])
            within = shares[:, 0] <= alpha + _TWO_SIGMA * shares[:, 1]
            y = np.arange(len(rules))[::-1]
            errors, colours = _TWO_SIGMA * shares[:, 1], np.where(within, GREEN, RED)
            ax.barh(y, shares[:, 0], xerr=errors, color=colours, ecolor="black", height=0.65)
            for place, share, error in zip(y, shares[:, 0], errors, strict=True):
                style = {"va": "center", "fontsize": 8, "zorder": 3, "bbox": _ON_WHITE}
                ax.text(share + error + 0.008, place, f"{share:.1%}", **style)
            ax.set_yticks(y, labels, fontsize=8)
            ax.axvline(alpha, color="black", linewidth=1, linestyle="--")
            ax.set_title(title, fontsize=10)
            ax.set(
                xlabel=f"false alarms (dashed: the {alpha:.0%} promised)",
                xlim=(0, float(shares[:, 0].max()) * 1.2 + 0.03),
            )
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            ax.grid(False, axis="y")


def _looks(looks: str) -> str:
    return "one look" if looks == "one" else f"{looks} looks" if looks.isdigit() else looks


def detection(found: Mapping[str, Stopping], incumbent: float, canary: float, path: Path) -> None:
    """Draw the share of bad updates that are found against canary episodes."""
    with _drawing(path) as (ax,):
        for label, stopping in found.items():
            times = np.sort(stopping.times)
            shares = np.arange(1, len(times) + 1) / len(times)
            style = "--" if "only" in label else "-"
            ax.step(times, shares, style, where="post", label=label, linewidth=1.8)
        ax.axhline(0.5, color=GREY, linewidth=1, linestyle=":")
        ax.axhline(0.9, color=GREY, linewidth=1, linestyle=":")
        ax.set(
            xlabel=f"canary episodes (success {canary:.0%}, before {incumbent:.0%})",
            ylabel="share of updates rolled back",
        )
        ax.set(xlim=(0, 700), ylim=(0, 1.02))
        ax.legend(title="stage (share of episodes)", loc="lower right", frameon=False, fontsize=8)


def hours_map(hours: Floats, fleets: Sequence[int], per_hour: Sequence[float], stage_h: float, path: Path) -> None:
    """Draw the median hours until the rollback by fleet size (rows) and task frequency (columns)."""
    with _drawing(path, size=(7.5, 4.6)) as (ax,):
        from matplotlib.patches import Rectangle

        shown = np.log10(hours)
        limit = np.log10(stage_h)
        ax.imshow(shown, cmap="RdYlGn_r", vmin=limit - 2.0, vmax=limit + 2.0, origin="lower", aspect="auto")
        for row, column in np.ndindex(hours.shape):
            late = hours[row, column] > stage_h
            if late:
                square = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor=GREY, hatch="//")
                ax.add_patch(square)
            ax.text(
                column, row, hours_text(float(hours[row, column])), ha="center", va="center", fontsize=9,
                color="white" if shown[row, column] < limit - _DARK else "black", bbox=_ON_WHITE if late else None,
            )  # fmt: skip
        ax.set_xticks(range(len(per_hour)), [f"{f:g}" for f in per_hour])
        ax.set_yticks(range(len(fleets)), [f"{n}" for n in fleets])
        ax.set(xlabel="tasks an hour of each robot", ylabel="robots")
        ax.set_title(
            f"time until half of the bad updates are rolled back (hatched: later than the stage's {stage_h:g} h)",
            fontsize=10,
        )
        ax.grid(False)


def rollout_ends(rollouts: Mapping[tuple[str, str], Rollouts], path: Path) -> None:
    """Draw how whole rollouts end, by update and rule."""
    with _drawing(path, size=(7.5, 3.6)) as (ax,):
        y = np.arange(len(rollouts))[::-1]
        left = np.zeros(len(rollouts))
        for outcome, colour in zip(OUTCOMES, (RED, GREY, GREEN), strict=True):
            shares = np.array([runs.share(outcome) for runs in rollouts.values()])
            ax.barh(y, shares, left=left, color=colour, label=outcome, height=0.6)
            for place, start, share in zip(y, left, shares, strict=True):
                if share > 0.02:
                    ax.text(
                        start + share / 2, place, f"{share:.0%}", ha="center", va="center", color="white", fontsize=9
                    )
            left += shares
        for place, runs in zip(y, rollouts.values(), strict=True):
            ax.text(1.02, place, f"{hours_text(float(runs.hours.mean()))} on average", va="center", fontsize=9)
        ax.set_yticks(y, [f"{version} update\n{rule}" for version, rule in rollouts], fontsize=9)
        ax.set(xlabel="share of rollouts", xlim=(0, 1))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.grid(False)
        ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
