# SPDX-License-Identifier: Apache-2.0
"""Success of each task over time in one picture, with the moment when every robot had the new version."""

from __future__ import annotations

from pathlib import Path

from vla_evidence.sequential.intervals import clopper_pearson_interval
from vla_fleet.client import Json

# Okabe and Ito: safe for the colour-blind.
_NEW, _OLD, _DARK, _RED = "#E69F00", "#0072B2", "#333333", "#B03A00"
_WINDOW_S = 30.0


def draw(report: Json, path: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 5.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    end_s = max((episode["at_s"] for episode in report["episodes"]), default=0.0) + 3.0
    for new, colour, name in ((False, _OLD, "old colours"), (True, _NEW, report["new_task"])):
        own = [episode for episode in report["episodes"] if episode["new"] is new]
        _draw_task(ax, own, colour, name, -0.08 if new else -0.14, end_s)
    _draw_chapters(ax, report["chapters"], end_s)
    for mark in report["marks"]:
        ax.axvline(mark["at_s"], ymax=0.87, color=_RED, lw=1.0, ls=":")
        ax.text(mark["at_s"] + 1, 1.045, mark["what"], fontsize=8, color=_RED)
    ax.set_ylim(-0.19, 1.24)
    ax.set_xlim(0, end_s)
    ax.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    ax.set_xlabel("time [s]. Below: each episode; | the policy did it alone, × an operator took over or it failed")
    ax.set_ylabel(f"success without an operator, {_WINDOW_S:g} s each, 95 %")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="center", frameon=False)
    figure.suptitle("Robots meet a new colour, an operator corrects them, the fleet learns it", fontweight="bold")
    figure.savefig(path, metadata={"Software": "vla_ota"})


def _draw_task(ax, episodes: list[Json], colour: str, name: str, rug: float, end_s: float) -> None:  # type: ignore[no-untyped-def]
    shift = 1.0 if rug > -0.1 else -1.0
    at, rates, below, above = list[float](), list[float](), list[float](), list[float]()
    begin = 0.0
    while begin < end_s:
        own = [episode["alone"] for episode in episodes if begin <= episode["at_s"] < begin + _WINDOW_S]
        if own:
            low, high = clopper_pearson_interval(sum(own), len(own))
            at.append(begin + _WINDOW_S / 2 + shift)
            rates.append(sum(own) / len(own))
            below.append(rates[-1] - float(low))
            above.append(float(high) - rates[-1])
        begin += _WINDOW_S
    ax.errorbar(at, rates, yerr=[below, above], color=colour, marker="o", capsize=3, lw=1.6, label=name)
    for alone, marker in ((True, "|"), (False, "x")):
        moments = [episode["at_s"] for episode in episodes if episode["alone"] is alone]
        ax.plot(moments, [rug] * len(moments), marker, color=colour, ms=5, alpha=0.8)


def _draw_chapters(ax, chapters: list[Json], end_s: float) -> None:  # type: ignore[no-untyped-def]
    begins = [*(chapter["at_s"] for chapter in chapters), end_s]
    for number, chapter in enumerate(chapters):
        begin, end = begins[number], begins[number + 1]
        ax.axvspan(begin, end, color="#F2F2F2" if number % 2 else "white", zorder=-1)
        style = {"ha": "center", "va": "center", "fontsize": 8.5, "fontweight": "bold", "color": _DARK}
        ax.text((begin + end) / 2, 1.17, chapter["what"], **style)
