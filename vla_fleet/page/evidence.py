# SPDX-License-Identifier: Apache-2.0
"""Drawings of evidence over time, from the verdicts of a judge's log (docs/evidence.md says what the figures are)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vla_evidence.sequential.intervals import confidence_sequence
from vla_fleet.page import charts
from vla_fleet.page.charts import Chart, Shape

Record = Mapping[str, Any]
_LOWEST = -2.0
"""Evidence below 1/100 is drawn as that: log10."""
_HARM = {"success": "lower success", "latency": "more slow episodes"}


def against(records: Sequence[Record]) -> Chart | None:
    """Return the evidence against a new version beside the level at which it is rolled back; None: nothing to draw.

    Where episodes are drawn it is an e-value, which decides when it is high; where robots are drawn it is a p-value, which
    decides when it is low.
    """
    points = [(float(r["now_s"]), r["verdict"]["figures"].get("tests", {})) for r in records]
    e_values = _series(points, "log_e", "decides_at", lambda value: value / math.log(10.0))
    if e_values:
        levels = [level for _, _, level in e_values.values()]
        lowest = max(_LOWEST, min(min(ys) for _, ys, _ in e_values.values()))
        return _levels(e_values, lowest, max(*levels, *(max(ys) for _, ys, _ in e_values.values())), (
            "Evidence against the new version", "rolled back at {}", lambda power: f"{10**power:,.3g}"
        ))  # fmt: skip
    p_values = _series(points, "p", "alpha", lambda value: math.log10(max(value, 1e-6)))
    if p_values:
        lows = [min(level, *ys) for _, ys, level in p_values.values()]
        return _levels(p_values, min(lows), 0.0, (
            "p-value of no harm, at each look", "level of all looks together {}", lambda power: f"{10**power:.2g}"
        ))  # fmt: skip
    return None


_Series = dict[str, tuple[list[float], list[float], float]]


def _series(points: Sequence[tuple[float, Any]], value: str, level: str, scale: Any) -> _Series:
    """Return times, values and level of every endpoint that has any."""
    found: _Series = {}
    for now_s, tests in points:
        for name, test in tests.items():
            if isinstance(test, dict) and test.get(value) is not None:
                xs, ys, _ = found.get(name, ([], [], 0.0))
                found[name] = [*xs, now_s], [*ys, scale(test[value])], float(scale(test[level]))
    return found


def _levels(series: _Series, lowest: float, highest: float, words: tuple[str, str, Any]) -> Chart:
    title, rule, shown = words
    end_s = max(max(xs[-1] for xs, _, _ in series.values()), 60.0)
    bottom, top, labels = charts.decades(lowest, highest)
    said = []
    made = Chart(title=title, words="", x=charts.since(end_s), y=labels)
    for color, (name, (xs, ys, level)) in enumerate(series.items()):
        ends = [x / end_s for x in xs]
        harm = _HARM.get(name, name)
        made.shapes.append(Shape(f"line c{color % charts.COLORS}", charts.line(ys, bottom, top, ends)))
        made.shapes.append(Shape(f"limit c{color % charts.COLORS}", charts.line([level, level], bottom, top)))
        made.legend.append((f"line c{color % charts.COLORS}", f"{harm}: {shown(ys[-1])}"))
        made.legend.append((f"limit c{color % charts.COLORS}", rule.format(shown(level))))
        said.append(f"{harm}: now {shown(ys[-1])}, {rule.format(shown(level))}")
    made.words = f"{title} over time. {'; '.join(said)}."
    return made


def rates(
    records: Sequence[Record], arms: Sequence[tuple[str, str]], confidence: float | None, begin_s: float = 0.0
) -> Chart | None:
    """Return success rates over time; None: there is no episode yet.

    Args:
        records: verdicts.
        arms: key in the figures, and name, of each version.
        confidence: of the confidence sequence drawn around each; None: episodes are alike, and none is drawn.
        begin_s: of the judgement, by the clock of its records.
    """
    points = [
        (float(r["now_s"]) - begin_s, [_counts(r["verdict"]["figures"].get(key)) for key, _ in arms]) for r in records
    ]
    points = [(now_s, found) for now_s, found in points if any(n for _, n in found)]
    if not points:
        return None
    end_s = max(points[-1][0], 60.0)
    made = Chart(title="Success rate", words="", x=charts.since(end_s), y=charts.percents())
    said = []
    for color, (_, name) in enumerate(arms):
        own = [(now_s, *found[color]) for now_s, found in points if found[color][1]]
        if not own:
            continue
        xs = [now_s / end_s for now_s, _, _ in own]
        said.append(f"{name} {own[-1][1] / own[-1][2]:.1%}")
        if confidence is not None:
            low, high = confidence_sequence([k for _, k, _ in own], [n for _, _, n in own], confidence)
            made.shapes.append(Shape(f"band c{color}", charts.band(low.tolist(), high.tolist(), 0.0, 1.0, xs)))
            said[-1] += f", interval {low[-1]:.1%} to {high[-1]:.1%}"
        made.shapes.append(Shape(f"line c{color}", charts.line([k / n for _, k, n in own], 0.0, 1.0, xs)))
        made.legend.append((f"line c{color}", name))
    made.words = f"Success rates over time. Now {'; '.join(said)}."
    return made


def _counts(figures: Any) -> tuple[int, int]:
    """Return successes and episodes of a version from a judge's figures."""
    if isinstance(figures, dict):
        return int(figures["successes"]), int(figures["episodes"])
    return (int(figures[0]), int(figures[1])) if figures else (0, 0)
