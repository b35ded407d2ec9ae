# SPDX-License-Identifier: Apache-2.0
"""Figures of several runs: median and range, ratios within a run, tables for people and JSON for programs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One way of doing it under one condition; every run appends one number to each metric."""

    way: str
    condition: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **metrics: float) -> None:
        """Take in the numbers of one run."""
        for name, value in metrics.items():
            self.values.setdefault(name, []).append(value)


class Table:
    """Rows of one measurement, made on first use and kept in that order."""

    def __init__(self, title: str, columns: Sequence[tuple[str, str, str]]) -> None:
        """``columns``: ``(metric, heading with its unit, format)``."""
        self.title, self.columns = title, columns
        self.rows: list[Row] = []
        self.notes: list[str] = []

    def row(self, way: str, condition: str = "") -> Row:
        """Return the row of a way under a condition."""
        for row in self.rows:
            if (row.way, row.condition) == (way, condition):
                return row
        self.rows.append(Row(way, condition))
        return self.rows[-1]

    def ratios(self, metric: str, peer: str, ours: str) -> dict[str, list[float]]:
        """Return ``condition → [peer / ours in run 1, in run 2, …]``, without runs in which ours is 0."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if row.way == ours:
                others = next((r for r in self.rows if (r.way, r.condition) == (peer, row.condition)), None)
                pairs = zip(others.values.get(metric, []) if others else [], row.values.get(metric, []), strict=False)
                found[row.condition] = [a / b for a, b in pairs if b > 0]
        return {condition: numbers for condition, numbers in found.items() if numbers}

    def note_ratio(self, metric: str, peer: str, ours: str, what: str) -> None:
        """Add a line with the ratios of a metric."""
        parts = []
        for condition, numbers in self.ratios(metric, peer, ours).items():
            text = spread(numbers, ".0f" if statistics.median(numbers) >= 100 else ".2g")
            parts.append(f"{condition}: {text}" if condition else text)
        if parts:
            self.notes.append(f"{what}, {peer} ÷ {ours}: {'; '.join(parts)}")

    def text(self) -> str:
        """Return the table as it is printed: median (smallest to largest)."""
        head = ["", *([""] if self._has_conditions else []), *(heading for _, heading, _ in self.columns)]
        lines = [head]
        for row in sorted(self.rows, key=lambda r: [x.condition for x in self.rows].index(r.condition)):
            cells = [row.condition, row.way] if self._has_conditions else [row.way]
            cells += [spread(row.values.get(metric, []), style) for metric, _, style in self.columns]
            lines.append(cells)
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = [f"{self.title}  (median of {self._runs} runs, smallest–largest)", ""]
        text += [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        return "\n".join([*text, *([""] if self.notes else []), *self.notes, ""])

    @property
    def _has_conditions(self) -> bool:
        return any(row.condition for row in self.rows)

    @property
    def _runs(self) -> str:
        counts = sorted({len(numbers) for row in self.rows for numbers in row.values.values()})
        return "–".join(str(n) for n in dict.fromkeys([counts[0], counts[-1]])) if counts else "0"

    def to_json(self) -> dict[str, Any]:
        """Return everything, each run's number included."""
        return {
            "title": self.title,
            "units": {metric: heading for metric, heading, _ in self.columns},
            "rows": [
                {"way": row.way, "condition": row.condition, **{k: summary(v) for k, v in row.values.items()}}
                for row in self.rows
            ],
            "notes": self.notes,
        }


def summary(numbers: Sequence[float]) -> dict[str, Any]:
    """Return median, smallest, largest and the runs themselves."""
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers), "runs": list(numbers)}


def spread(numbers: Sequence[float], style: str) -> str:
    """Return ``median (min–max)``, ``–`` without numbers."""
    if not numbers:
        return "–"
    low, middle, high = (format(x, style) for x in (min(numbers), statistics.median(numbers), max(numbers)))
    return middle if low == high else f"{middle} ({low}–{high})"


def percentile(numbers: Sequence[float], share: float) -> float:
    """Return the smallest number that at least ``share`` of them do not exceed (nearest rank)."""
    ordered = sorted(numbers)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def finish(name: str, out: Path, machine: dict[str, Any], settings: dict[str, Any], tables: Iterable[Table]) -> None:
    """Write ``<out>/<name>.json`` and print the tables."""
    tables = list(tables)
    out.mkdir(parents=True, exist_ok=True)
    document = {
        "benchmark": name,
        "machine": machine,
        "settings": settings,
        "tables": [table.to_json() for table in tables],
    }
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    for table in tables:
        print(table.text(), flush=True)
