# SPDX-License-Identifier: Apache-2.0
"""The plot of exercise 4, drawn by matplotlib without a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_evidence.analysis import analysis_packages
from vla_evidence.sequential.intervals import wilson_interval

if TYPE_CHECKING:
    from vla_learning.simulate.federated import Outcome, Score

# Okabe and Ito: safe for the colour-blind.
_COLOURS = ("#0072B2", "#D55E00", "#E69F00")
_CENTRAL, _ALONE = "#009E73", "#777777"


def draw(outcome: Outcome, path: Path) -> None:
    """Draw success over the rounds, and the bytes that a robot moves over the episodes that it records."""
    with analysis_packages():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(11.0, 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, alpha=0.25)
    _success(left, outcome)
    _traffic(right, outcome)
    figure.savefig(path, metadata={"Software": "vla-fleet"})


def _success(axes: Any, outcome: Outcome) -> None:
    base, alone, central = (outcome.scores[way] for way in ("base", "each robot alone", "all episodes in one place"))
    for i, (way, scores) in enumerate(outcome.rounds.items()):
        rates, errors = _rates([base, *scores])
        x = np.arange(len(rates)) + 0.04 * (i - 1)
        axes.errorbar(x, rates, errors, label=way, color=_COLOURS[i], marker="o", markersize=4, capsize=3, linewidth=2)
    for score, label, colour in ((central, "all episodes in one place", _CENTRAL), (alone, "each robot alone", _ALONE)):
        low, high = wilson_interval(*score.all)
        axes.axhline(score.all[0] / score.all[1], color=colour, linestyle="--", label=label)
        axes.axhspan(low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set(xlabel="round", ylabel="success (bars, bands: 95 % intervals)", ylim=(0, 1.02))
    axes.set_xticks(range(outcome.settings.rounds + 1))
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _rates(scores: list[Score]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rates = np.array([score.all[0] / score.all[1] for score in scores])
    ends = np.array([wilson_interval(*score.all) for score in scores]).T
    return rates, np.abs(ends - rates)


def _traffic(axes: Any, outcome: Outcome) -> None:
    most = 2.0 * max(outcome.settings.episodes, sum(_moved(outcome, "exact merge")) / outcome.episode_bytes)
    episodes = np.array([0.0, most])
    central = outcome.down["all episodes in one place"] + episodes * outcome.episode_bytes
    axes.plot(episodes, central / 1e6, color=_CENTRAL, linestyle="--", linewidth=2, label="all episodes in one place")
    for i, way in enumerate(outcome.rounds):
        axes.plot(episodes, np.full(2, sum(_moved(outcome, way)) / 1e6), color=_COLOURS[i], linewidth=2, label=way)
    axes.axvline(outcome.settings.episodes, color=_ALONE, linewidth=1, linestyle=":", label="episodes of this run")
    axes.set(
        xlabel="episodes that a robot records",
        ylabel="sent and received by a robot [MB]",
        xlim=(0, most),
        ylim=(0, None),
    )
    axes.legend(frameon=False, fontsize=8)


def _moved(outcome: Outcome, way: str) -> tuple[float, float]:
    return outcome.up[way], outcome.down[way]
