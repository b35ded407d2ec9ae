# SPDX-License-Identifier: Apache-2.0
"""Drawings of evidence over time, from the verdicts of a judge's log (docs/evidence.md says what the figures are)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vla_evidence.sequential.intervals import confidence_sequence
from vla_fleet.page import charts
from vla_fleet.page.charts import Chart, Shape

Record = Mapping[str, Any]
_LOWEST, _HIGHEST = -2.0, 12.0
"""Evidence beyond is drawn as that: log10."""
_LEAST_P = 1e-6
_HARM = {"success": "lower success", "latency": "more slow episodes"}


@dataclass
class _Endpoint:
    """What one endpoint said at each verdict, and the level that decides; on the scale on which it is drawn (log10)."""

    level: float
    xs: list[float] = field(default_factory=list)
    ys: list[float] = field(default_factory=list)


def against(records: Sequence[Record]) -> Chart | None:
    """Return the evidence against a new version beside the level at which it is rolled back; None: nothing to draw.

    Where episodes are drawn it is an e-value, which decides when it is high; where robots are drawn it is a p-value, which
    decides when it is low.
    """
    points = [(float(r["now_s"]), r["verdict"]["figures"].get("tests", {})) for r in records]
    if e_values := _endpoints(points, "log_e", "decides_at", lambda value: min(value / math.log(10.0), _HIGHEST)):
        lowest = max(_LOWEST, min(min(own.ys) for own in e_values.values()))
        highest = max(max(own.level, *own.ys) for own in e_values.values())
        return _levels(e_values, lowest, highest, "Evidence against the new version", "rolled back at {}")
    if p_values := _endpoints(points, "p", "alpha", lambda value: math.log10(max(value, _LEAST_P))):
        lowest = min(min(own.level, *own.ys) for own in p_values.values())
        return _levels(p_values, lowest, 0.0, "p-value of no harm, at each look", "level of all looks together {}")
    return None


def _endpoints(
    points: Sequence[tuple[float, Any]], value: str, level: str, scale: Callable[[float], float]
) -> dict[str, _Endpoint]:
    found: dict[str, _Endpoint] = {}
    for now_s, tests in points:
        for name, test in tests.items():
            if isinstance(test, dict) and test.get(value) is not None:
                own = found.setdefault(name, _Endpoint(scale(test[level])))
                own.xs.append(now_s)
                own.ys.append(scale(test[value]))
    return found


def _levels(found: Mapping[str, _Endpoint], lowest: float, highest: float, title: str, rule: str) -> Chart:
    end_s = max(60.0, *(own.xs[-1] for own in found.values()))
    bottom, top, labels = charts.decades(lowest, highest)
    said = []
    made = Chart(title=title, words="", x=charts.since(end_s), y=labels)
    for color, (name, own) in enumerate(found.items()):
        now, decides = f"{_HARM.get(name, name)}: {10 ** own.ys[-1]:,.3g}", rule.format(f"{10**own.level:,.3g}")
        for style, ys, xs, text in (
            ("line", own.ys, [x / end_s for x in own.xs], now),
            ("limit", [own.level] * 2, [0.0, 1.0], decides),
        ):
            paint = f"{style} c{color % charts.COLORS}"
            made.shapes.append(Shape(paint, charts.line(ys, bottom, top, xs)))
            made.legend.append((paint, text))
        said.append(f"{now}, {decides}")
    made.words = f"{title} over time. Now {'; '.join(said)}."
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
