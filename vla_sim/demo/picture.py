# SPDX-License-Identifier: Apache-2.0
"""The demo in one picture: which version acts and what happens to it, how the arm moves, how late commands and witness are."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from vla_ota.msg import EpisodeOutcome, SwapReport

from vla_sim.arm import JOINT_NAMES
from vla_sim.demo.journal import Killed, at_s
from vla_sim.demo.report import OPERATOR, Evidence, Row

# Okabe and Ito: safe for the colour-blind.
_BLUE, _SKY, _RED, _ORANGE, _GREEN, _PINK = "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7"
_VERSION_COLOURS = (_SKY, _BLUE, _RED, _GREEN, _PINK, _ORANGE)
_GREY, _DARK = "#999999", "#333333"
_ON_WHITE = {"color": "white", "pad": 0.4, "alpha": 0.85}
_LEAST_MS, _MOST_MS = 1.0, 100.0  # what is less late is not drawn
_NARROW, _LEAST_WIDTH, _LETTER = (
    0.035,
    0.005,
    0.0095,
)  # share of the time axis that a version's name, a hold, a letter need
_BEFORE_S = 5.0  # shown before the first policy acts


class PictureError(Exception):
    """No picture can be drawn; the message says why."""


def draw(evidence: Evidence, report: Row, path: Path) -> None:
    """Write the picture as PNG. Raises PictureError without matplotlib, or if the arm never moved."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise PictureError(f"{e}; install it with pip and run the demo again") from e
    if not evidence.journal.joints or not evidence.journal.commands:
        raise PictureError("the arm never moved")
    figure = Figure(figsize=(11.0, 7.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 2, height_ratios=(1.7, 2.0, 2.0), width_ratios=(5.2, 1.0))
    story = figure.add_subplot(grid[0, 0])
    joints, late = (figure.add_subplot(grid[row, 0], sharex=story) for row in (1, 2))
    keys, success, more_keys = (figure.add_subplot(grid[row, 1]) for row in range(3))
    picture = _Picture(evidence, report)
    picture.draw_story(story)
    picture.draw_joints(joints)
    picture.draw_lateness(late)
    picture.draw_success(success)
    for ax, drawn in ((keys, story), (more_keys, late)):
        ax.set_axis_off()
        ax.legend(*drawn.get_legend_handles_labels(), loc="center left", fontsize=9, frameon=False, borderpad=0.0)
    for ax in (story, joints):
        ax.tick_params(labelbottom=False)
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    swaps, rollbacks, missed = len(report["swaps"]), len(report["rollbacks"]), report["missed_ticks"]
    figure.suptitle(
        f"{swaps} policies swapped in on a moving arm, {rollbacks} of them rolled back: {missed} control ticks missed",
        fontsize=14,
        fontweight="bold",
    )
    figure.savefig(path, metadata={"Software": "vla_ota"})


class _Picture:
    def __init__(self, evidence: Evidence, report: Row) -> None:
        self._journal, self._late, self._report = evidence.journal, evidence.late, report
        first_s = min((at_s(r) for r in self._journal.all(SwapReport)), default=0.0)
        self._begin_s = max(self._journal.joints[0][0], first_s - _BEFORE_S)
        self._end_s = max(self._journal.joints[-1][0], self._journal.commands[-1])
        versions = dict.fromkeys(r.to_version for r in self._journal.all(SwapReport))
        self._colours: dict[str, str] = dict(zip(versions, _VERSION_COLOURS, strict=False))

    def _x(self, time_s: float) -> float:
        """Seconds on the time axis."""
        return time_s - self._begin_s

    def _colour(self, version: str) -> str:
        """Colour of a version: those beyond the palette are grey."""
        return self._colours.get(version, _GREY)

    def draw_story(self, ax: Any) -> None:
        """Which version acts, holds, episodes, and what happened."""
        ax.set_ylim(0.0, 3.6)
        ax.set_yticks([0.5, 1.5, 2.7], ["episodes", "acts", "events"])
        ax.tick_params(axis="y", length=0)
        ax.set_xlim(0.0, self._x(self._end_s))
        reports = [r for r in self._journal.all(SwapReport) if r.from_version != r.to_version]
        ends = [*(self._x(at_s(r)) for r in reports[1:]), self._x(self._end_s)]
        for report, end in zip(reports, ends, strict=True):
            begin = self._x(at_s(report))
            ax.barh(1.5, end - begin, left=begin, height=0.62, color=self._colour(report.to_version))
            text = report.to_version if end - begin > _NARROW * self._x(self._end_s) else ""
            ax.text(
                (begin + end) / 2, 1.5, text, ha="center", va="center", color="white", fontweight="bold", fontsize=9
            )
        style = {"height": 0.62, "color": "white", "hatch": "//////", "edgecolor": _RED, "lw": 0.8}
        for hold in self._report["holds"]:
            begin = self._x(hold["at_s"])
            width = self._x(self._end_s) - begin if hold["duration_s"] is None else hold["duration_s"]
            ax.barh(1.5, max(width, _LEAST_WIDTH * self._x(self._end_s)), left=begin, **style)
        for cause in dict.fromkeys(hold["cause"] for hold in self._report["holds"]):
            ax.barh(0, 0, label=f"hold: {cause}", **style)
        outcomes = [o for o in self._journal.all(EpisodeOutcome) if o.known and at_s(o) >= self._begin_s]
        for label, wanted, style in (
            ("episode succeeded", True, {"marker": "o", "color": _GREEN, "s": 24}),
            ("episode failed", False, {"marker": "x", "color": _RED, "s": 24}),
        ):
            times = [self._x(at_s(o)) for o in outcomes if (o.success and not o.intervention) == wanted]
            ax.scatter(times, [0.5] * len(times), label=label, **style)
        self._draw_events(ax)

    def _draw_events(self, ax: Any) -> None:
        free_from = [-math.inf, -math.inf]  # on each of two lines
        for x, text, colour in sorted(self._events()):
            half = 0.5 * _LETTER * self._x(self._end_s) * max(len(line) for line in text.splitlines())
            line = 0 if x - half > free_from[0] else 1
            free_from[line] = x + half
            bottom = (2.06, 2.86)[line]
            ax.plot([x, x], [1.82, bottom], color=colour, lw=1.0)
            style = {"ha": "center", "va": "bottom", "fontsize": 8, "linespacing": 1.0}
            ax.text(x, bottom + 0.05, text, color=colour, bbox=_ON_WHITE, zorder=3, **style)

    def _events(self) -> list[tuple[float, str, str]]:
        causes = {row["from"]: row["cause"] for row in self._report["rollbacks"]}
        found = [(row["at_s"], f"{row['version']}\nrefused", _RED) for row in self._report["rejected"]]
        found += [(kill.at_s, f"{kill.what.removeprefix('ota_')}\nkilled", _RED) for kill in self._journal.all(Killed)]
        for report in self._journal.all(SwapReport):
            if report.cause == "UPDATE":
                found.append((at_s(report), "swap" if report.from_version else "first\ninstall", _DARK))
            elif report.from_version in causes and report.from_version != report.to_version:
                who = "a person" if causes[report.from_version] == OPERATOR else "itself"
                found.append((at_s(report), f"rollback\nby {who}", _RED))
        return [(self._x(time_s), text, colour) for time_s, text, colour in found]

    def draw_joints(self, ax: Any) -> None:
        """Positions."""
        shown = [(self._x(time_s), positions) for time_s, positions in self._journal.joints if time_s >= self._begin_s]
        for i, (name, colour) in enumerate(zip(JOINT_NAMES, (_DARK, _BLUE, _ORANGE), strict=True)):
            ax.plot([x for x, _ in shown], [positions[i] for _, positions in shown], lw=1.1, color=colour)
            ax.text(0.4, shown[0][1][i], name, va="bottom", fontsize=9, color=colour, fontweight="bold")
        ax.margins(y=0.12)
        ax.set_ylabel("joint position [rad]")
        self._mark_swaps(ax)

    def _mark_swaps(self, ax: Any) -> None:
        for report in self._journal.all(SwapReport):
            ax.axvline(self._x(at_s(report)), color=self._colour(report.to_version), lw=0.9, ls=":")

    def draw_lateness(self, ax: Any) -> None:
        """Commands that came later after the one before than a period, beside the witness's late wake-ups."""
        period_ms = 1e3 / (self._report["control_rate_hz"] or 50.0)
        commands = [(self._x(b), (b - a) * 1e3 - period_ms) for a, b in pairwise(self._journal.commands)]
        witness = [(self._x(w.woke_s), w.late_s * 1e3) for w in self._late if w.woke_s >= self._begin_s]
        for label, points, style in (
            ("command of the\ncontrol loop", commands, {"marker": "o", "color": _BLUE, "s": 18}),
            ("witness, a process\nthat only sleeps", witness, {"marker": "x", "color": _ORANGE, "s": 24}),
        ):
            shown = [(x, late_ms) for x, late_ms in points if late_ms >= _LEAST_MS]
            ax.scatter([x for x, _ in shown], [late_ms for _, late_ms in shown], label=label, linewidths=1.2, **style)
        ax.axhline(period_ms, color=_RED, lw=1.0)
        text = f"red line: one period, {period_ms:g} ms; beyond it a tick is missed"
        if machines := self._report["machines_ticks"]:
            text += f" ({machines} were, while the witness was late too)"
        ax.set_title(text, loc="left", color=_RED, fontsize=9)
        ax.set_yscale("log")
        ax.set_ylim(_LEAST_MS, max(_MOST_MS, *(2 * late_ms for _, late_ms in [*commands, *witness])))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylabel("late by [ms]")
        ax.set_xlabel("time [s]")
        self._mark_swaps(ax)

    def draw_success(self, ax: Any) -> None:
        """Success by version."""
        rows = {row["version"]: row for row in self._report["success_rates"]}
        for y, (version, colour) in enumerate(self._colours.items()):
            row = rows.get(version, {"episodes": 0, "successes": 0})
            share = row["successes"] / row["episodes"] if row["episodes"] else 0.0
            ax.barh(y, share * 100, color=colour)
            text = f"{row['successes']} of {row['episodes']}" if row["episodes"] else "no whole episode"
            ax.text(4, y, text, va="center", fontsize=8, color="white" if share > 0.5 else _DARK)
        ax.set_yticks(range(len(self._colours)), list(self._colours), fontsize=9)
        ax.invert_yaxis()
        ax.set_xlim(0, 100)
        ax.set_xlabel("successful episodes [%]", fontsize=9)
