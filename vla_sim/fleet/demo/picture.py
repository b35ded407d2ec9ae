# SPDX-License-Identifier: Apache-2.0
"""The fleet over time in one picture: a row a robot, a colour a version."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

# Okabe and Ito: safe for the colour-blind.
_COLOURS = ("#56B4E9", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_GREY, _DARK, _RED = "#DDDDDD", "#333333", "#B03A00"
_HEIGHT = 0.72
_LETTER, _NARROW = 0.0085, 0.05
_MARKS_AT, _LINE, _CHAPTERS_AT, _TOP = -0.75, 0.55, -2.0, -2.9


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11.0, 5.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    robots = sorted({moment["robot"] for moment in report["robots"]})
    versions = sorted({moment[kind] for moment in report["robots"] for kind in ("version", "drawn")} - {""})
    colours = dict(zip(versions, _COLOURS, strict=False))
    end_s = max((moment["at_s"] for moment in report["robots"]), default=0.0) + 3.0
    for y, robot in enumerate(robots):
        _draw_robot(ax, y, [m for m in report["robots"] if m["robot"] == robot], colours, end_s)
    _draw_chapters(ax, report["chapters"], end_s)
    _draw_marks(ax, report["marks"], len(robots), end_s)
    keys = [Patch(color=colour, label=version) for version, colour in colours.items()]
    keys.append(Patch(facecolor="white", hatch="////", edgecolor=_DARK, label="on trial"))
    keys.append(Patch(color=_GREY, label="offline or\nno version"))
    ax.set_yticks(range(len(robots)), robots)
    ax.set_xlim(0, end_s)
    ax.set_ylim(len(robots) - 0.5, _TOP)
    ax.set_xlabel(f"time [s]; the fleet's clock runs {report['clock_rate']:g} times as fast")
    ax.legend(handles=keys, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    title = "What each robot runs. arm_*: ROS 2 robots in motion; sim_*: two colours while each episode is drawn"
    figure.suptitle(title, fontweight="bold")
    figure.savefig(path, metadata={"Software": "vla_ota"})


def _draw_robot(ax: Any, y: int, moments: list[dict[str, Any]], colours: dict[str, str], end_s: float) -> None:
    ends = [*(moment["at_s"] for moment in moments[1:]), end_s]
    for moment, end in zip(moments, ends, strict=True):
        begin, width = moment["at_s"], end - moment["at_s"]
        if not (moment["online"] and moment["version"]):
            ax.barh(y, width, left=begin, height=_HEIGHT, color=_GREY)
            continue
        hatch = {"hatch": "////", "edgecolor": "white", "lw": 0.0} if moment["trial"] else {}
        ax.barh(y, width, left=begin, height=_HEIGHT, color=colours.get(moment["version"], _GREY), **hatch)
        if moment["drawn"]:
            ax.barh(y + _HEIGHT / 4, width, left=begin, height=_HEIGHT / 2, color=colours.get(moment["drawn"], _GREY))
        elif not moment["trial"] and width > _NARROW * end_s:
            style = {"ha": "center", "va": "center", "color": "white", "fontsize": 8, "fontweight": "bold"}
            ax.text(begin + width / 2, y, moment["version"], **style)


def _draw_chapters(ax: Any, chapters: list[dict[str, Any]], end_s: float) -> None:
    begins = [*(chapter["at_s"] for chapter in chapters), end_s]
    for number, (chapter, (begin, end)) in enumerate(zip(chapters, pairwise(begins), strict=True)):
        ax.axvspan(begin, end, color="#F2F2F2" if number % 2 else "white", zorder=-1)
        style = {"ha": "center", "va": "center", "fontsize": 8.5, "fontweight": "bold", "color": _DARK}
        ax.text((begin + end) / 2, _CHAPTERS_AT - 0.45, chapter["what"], **style)


def _draw_marks(ax: Any, marks: list[dict[str, Any]], robots: int, end_s: float) -> None:
    free_from = [-math.inf, -math.inf]  # on each of two lines
    for mark in marks:
        half = 0.5 * _LETTER * end_s * len(mark["what"])
        middle = min(max(mark["at_s"], half), end_s - half)
        line = 0 if middle - half > free_from[0] else 1
        free_from[line] = middle + half
        height = _MARKS_AT - _LINE * line
        ax.plot([mark["at_s"]] * 2, [height, robots - 0.5], color=_RED, lw=0.9, ls=":")
        ax.text(middle, height, mark["what"], ha="center", va="bottom", fontsize=8, color=_RED)
