# SPDX-License-Identifier: Apache-2.0
"""Tables of estimates and goals, for people as text and for programs as JSON that says which sample a figure is from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.evidence.montecarlo import Estimate, Samples


@dataclass(frozen=True)
class Figure:
    """Where a figure comes from: a statistic (:meth:`Sample.estimate`) of a metric of an experiment."""

    experiment: str
    metric: str
    statistic: str
    style: str = ".1f"
    """A format; ``.2%`` prints a share as a percentage."""

    def estimate(self, samples: Samples) -> Estimate | None:
        """Return the figure, None where the experiment was not run."""
        found = samples.get(self.experiment)
        return found[self.metric].estimate(self.statistic) if found else None


Cell = Figure | str | None


@dataclass
class EstimateTable:
    """Rows of cells: a figure, a word, or nothing."""

    title: str
    headings: Sequence[str]
    """Of the columns; the first is that of the rows' names."""
    rows: list[tuple[str, Sequence[Cell]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, *cells: Cell) -> None:
        """Append a row."""
        self.rows.append((name, cells))

    def lines(self, samples: Samples) -> list[list[str]]:
        """Return the table as text cells, headings first."""
        return [
            list(self.headings),
            *([name, *(_text(cell, samples) for cell in cells)] for name, cells in self.rows),
        ]

    def text(self, samples: Samples) -> str:
        """Return it as it is printed."""
        lines = self.lines(samples)
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        body = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([self.title, "", *body, *([""] if self.notes else []), *self.notes, ""])

    def markdown(self, samples: Samples) -> str:
        """Return it as a page has it."""
        head, *body = ["| " + " | ".join(line) + " |" for line in self.lines(samples)]
        return "\n".join([head, "|---" * len(self.headings) + "|", *body, *([""] if self.notes else []), *self.notes])

    def to_json(self, samples: Samples) -> dict[str, Any]:
        """Return every figure with its error, its number of runs and where it comes from."""
        return {
            "title": self.title,
            "headings": list(self.headings),
            "rows": [{"name": name, "cells": [_json(cell, samples) for cell in cells]} for name, cells in self.rows],
            "notes": self.notes,
        }


def _text(cell: Cell, samples: Samples) -> str:
    if isinstance(cell, Figure):
        estimate = cell.estimate(samples)
        return estimate.text(cell.style) if estimate else "not run"
    return cell if cell is not None else ""


def _json(cell: Cell, samples: Samples) -> Any:
    if not isinstance(cell, Figure):
        return cell
    estimate = cell.estimate(samples)
    source = {"experiment": cell.experiment, "metric": cell.metric, "statistic": cell.statistic, "style": cell.style}
    if estimate is None:
        return {**source, "runs": 0}
    return {**source, "value": estimate.value, "standard_error": estimate.error, "runs": estimate.runs}


@dataclass(frozen=True)
class Goal:
    """A promise and what came of it."""

    text: str
    value: float
    limit: float
    at_most: bool
    """Whether smaller is better."""
    error: float | None = None
    """Monte-Carlo standard error of ``value``; None where it is not simulated."""
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether ``value`` itself keeps the limit (its error is printed, not used)."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def line(self) -> str:
        """Return a line of text."""
        scale, unit = (100.0, " %") if self.unit == "%" else (1.0, f" {self.unit}" if self.unit else "")
        style = ",.0f" if self.limit >= 1000 else ".2f" if scale * self.limit >= 2 else ".3f"
        error = "" if self.error is None else f" ± {scale * self.error:{style}}"
        wanted = f"{'at most' if self.at_most else 'at least'} {scale * self.limit:{style}}{unit}"
        word = "reached" if self.reached else "MISSED "
        return f"{word}  {self.text}: {scale * self.value:{style}}{error}{unit} ({wanted})"

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        return {
            "goal": self.text,
            "value": self.value,
            "standard_error": self.error,
            "limit": self.limit,
            "at_most": self.at_most,
            "reached": self.reached,
        }
