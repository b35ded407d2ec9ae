# SPDX-License-Identifier: Apache-2.0
"""The curves: what a fleet costs against its size, from the benchmark's JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_PANELS = (
    ("kb", "memory of a robot [kB]"),
    ("connect_per_s", "connected [robots/s]"),
    ("update_s", "an order to all [s]"),
    ("robot_p99_ms", "GET robot, p99 [ms]"),
    ("update_cpu_ms", "processor, an order to a robot [ms]"),
    ("cpu", "processor at rest [% of a core]"),
)


def draw(table: dict[str, Any], path: Path) -> None:
    """Draw each figure of ``Table.to_json()`` against the number of robots, a line for each way of doing it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (metric, title) in zip(figure.subplots(2, 3).flat, _PANELS, strict=True):
        for index, way in enumerate(dict.fromkeys(row["way"] for row in table["rows"])):
            rows = [row for row in table["rows"] if row["way"] == way and metric in row]
            if rows:
                sizes, values = [int(row["condition"]) for row in rows], [row[metric]["median"] for row in rows]
                axes.plot(sizes, values, marker="o", color=f"C{index}", label=way)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0.0)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    figure.supxlabel("robots")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
