# SPDX-License-Identifier: Apache-2.0
"""The fleet over time in one picture: a row a robot, a colour a version."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

# Okabe and Ito: safe for the colour-blind.
_COLOURS = ("#56B4E9", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_GREY, _DARK, _RED = "#DDDDDD", "#333333", "#D55E00"
_LETTER, _NARROW = 0.0085, 0.05


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 5.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    robots = sorted({moment["robot"] for moment in report["robots"]})
    versions = sorted({moment["version"] for moment in report["robots"]} - {""})
    colours = dict(zip(versions, _COLOURS, strict=False))
    end_s = max((moment["at_s"] for moment in report["robots"]), default=0.0) + 3.0
    for y, robot in enumerate(robots):
        _draw_robot(ax, y, [m for m in report["robots"] if m["robot"] == robot], colours, end_s)
    _draw_marks(ax, report["marks"], len(robots), end_s)
    for version, colour in colours.items():
        ax.barh(0, 0, color=colour, label=version)
    ax.barh(0, 0, color="white", hatch="////", edgecolor=_DARK, label="on trial")
    ax.barh(0, 0, color=_GREY, label="offline or\nno version")
    ax.set_yticks(range(len(robots)), robots)
    ax.set_xlim(0, end_s)
    ax.set_ylim(len(robots) - 0.5, -2.4)
    ax.set_xlabel(f"time [s]; the fleet's clock runs {report['clock_rate']:g} times as fast")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "What each robot runs: arm_* are ROS 2 robots in motion, sim_* carry the evidence", fontweight="bold"
    )
    figure.savefig(path, metadata={"Software": "vla_ota"})


def _draw_robot(ax: Any, y: int, moments: list[dict[str, Any]], colours: dict[str, str], end_s: float) -> None:
    ends = [*(moment["at_s"] for moment in moments[1:]), end_s]
    for moment, end in zip(moments, ends, strict=True):
        width = end - moment["at_s"]
        known = moment["online"] and moment["version"]
        colour = colours.get(moment["version"], _GREY) if known else _GREY
        hatch = {"hatch": "////", "edgecolor": "white", "lw": 0.0} if known and moment["trial"] else {}
        ax.barh(y, width, left=moment["at_s"], height=0.72, color=colour, **hatch)
        if known and not moment["trial"] and width > _NARROW * end_s:
            style = {"ha": "center", "va": "center", "color": "white", "fontsize": 8, "fontweight": "bold"}
            ax.text(moment["at_s"] + width / 2, y, moment["version"], **style)


def _draw_marks(ax: Any, marks: list[dict[str, Any]], robots: int, end_s: float) -> None:
    free_from = [-math.inf, -math.inf, -math.inf]  # on each of three lines
    for mark in marks:
        half = 0.5 * _LETTER * end_s * len(mark["what"])
        line = next((i for i, free in enumerate(free_from) if mark["at_s"] - half > free), 0)
        free_from[line] = mark["at_s"] + half
        height = -0.8 - 0.6 * line
        ax.plot([mark["at_s"]] * 2, [height, robots - 0.5], color=_RED, lw=0.8, ls=":")
        ax.text(mark["at_s"], height, mark["what"], ha="center", va="bottom", fontsize=8, color=_DARK)
