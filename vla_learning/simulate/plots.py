# SPDX-License-Identifier: Apache-2.0
"""The exercises' plots, drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_evidence.analysis import analysis_packages

# Okabe and Ito: safe for the colour-blind.
BLUE, RED = "#0072B2", "#D55E00"
COLOURS = (BLUE, RED, "#009E73", "#E69F00")
Floats = npt.NDArray[np.float64]


@contextmanager
def drawing(path: Path, columns: int = 1, size: tuple[float, float] = (7.5, 4.2)) -> Iterator[list[Any]]:
    """Yield axes in a row; write the PNG at the end."""
    with analysis_packages():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, columns, sharey=True)))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, alpha=0.25)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    yield axes
    figure.savefig(path, metadata={"Software": "vla-fleet"})


def standard_error(values: Floats) -> Floats:
    """Return the standard error of the mean over the first axis; NaN for a single row."""
    count = values.shape[0]
    if count < 2:
        return np.full(values.shape[1:], np.nan)
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(count))


def trajectories(arms: Mapping[str, Floats], path: Path) -> None:
    """Draw the fleet's success rate over the weeks: each fleet thin, their mean with its standard error.

    Args:
        arms: label → ``[fleets, weeks + 1]``.
        path: of the PNG.
    """
    with drawing(path) as (ax,):
        for (label, values), colour in zip(arms.items(), COLOURS, strict=False):
            _weeks(ax, values, label, colour)
        ax.set(xlabel="week", ylabel="success rate of the fleet", ylim=(0, 1.02))
        ax.legend(loc="lower right", frameon=False)


def forgetting(arms: Mapping[str, tuple[Floats, Floats]], path: Path) -> None:
    """Draw success on old tasks beside success on the new one.

    Args:
        arms: label → old and new, ``[fleets, weeks + 1]`` each.
        path: of the PNG.
    """
    with drawing(path, 2, (9.5, 4.2)) as axes:
        for part, (ax, title) in enumerate(zip(axes, ("old tasks", "the new task"), strict=True)):
            for (label, values), colour in zip(arms.items(), COLOURS, strict=False):
                _weeks(ax, values[part], label, colour)
            ax.set_title(title, fontsize=10)
            ax.set(xlabel="week", ylim=(0, 1.02))
        axes[0].set(ylabel="success rate")
        axes[1].legend(loc="lower right", frameon=False)


def _weeks(ax: Any, values: Floats, label: str, colour: str) -> None:
    weeks = np.arange(values.shape[1])
    if len(values) > 1:
        ax.plot(weeks, values.T, color=colour, alpha=0.25, linewidth=0.8)
    error = np.nan_to_num(standard_error(values))
    ax.errorbar(
        weeks,
        values.mean(axis=0),
        yerr=error,
        color=colour,
        linewidth=2,
        capsize=3,
        marker="o",
        markersize=4,
        label=label,
    )
