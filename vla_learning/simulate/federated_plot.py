# SPDX-License-Identifier: Apache-2.0
"""The plots of exercise 4, and what its ways are called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_evidence.sequential.intervals import wilson_interval
from vla_learning.simulate.plots import COLOURS, drawing

if TYPE_CHECKING:
    from vla_learning.simulate.federated import Outcome, Score

EXACT, AVERAGED, AVERAGED_ALIKE = "exact merge", "A and B averaged apart", "the same, robots start alike"
CENTRAL, ALONE, BASE = "all episodes in one place", "each robot alone", "base"
_GREY = "#777777"


def success(outcome: Outcome, path: Path) -> None:
    """Draw success over the rounds, beside what needs no rounds; with 95 % intervals of Wilson."""
    with drawing(path) as (axes,):
        for i, (way, scores) in enumerate(outcome.rounds.items()):
            rates, errors = _rates([outcome.scores[BASE], *scores])
            x = np.arange(len(rates)) + 0.04 * (i - 1)
            axes.errorbar(x, rates, errors, label=way, color=_colour(i), marker="o", markersize=4, capsize=3)
        for way, colour in ((CENTRAL, COLOURS[2]), (ALONE, _GREY)):
            rates, _ = _rates([outcome.scores[way]])
            axes.axhline(rates[0], color=colour, linestyle="--", label=way)
            axes.axhspan(*wilson_interval(*outcome.scores[way].all), color=colour, alpha=0.12, linewidth=0)
        axes.set(xlabel="round", ylabel="success, with 95 % intervals", ylim=(0, 1.02))
        axes.set_xticks(range(outcome.settings.rounds + 1))
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def traffic(outcome: Outcome, path: Path) -> None:
    """Draw the bytes that a robot moves over the episodes that it records."""
    moved = {way: (outcome.up[way] + outcome.down[way]) / 1e6 for way in outcome.rounds}
    most = 2.0 * max(outcome.settings.episodes, moved[EXACT] * 1e6 / outcome.episode_bytes)
    episodes = np.array([0.0, most])
    central = (outcome.down[CENTRAL] + episodes * outcome.episode_bytes) / 1e6
    with drawing(path) as (axes,):
        for i, (way, megabytes) in enumerate(moved.items()):
            axes.plot(episodes, np.full(2, megabytes), color=_colour(i), linestyle=("-", "-", ":")[i], label=way)
        axes.plot(episodes, central, color=COLOURS[2], linestyle="--", label=CENTRAL)
        axes.axvline(outcome.settings.episodes, color=_GREY, linewidth=1, linestyle=":", label="episodes of this run")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(xlabel="episodes that a robot records", ylabel="sent and received by a robot [MB]")
        axes.set(xlim=(0, most), ylim=(0, None))
        axes.legend(frameon=False, fontsize=8)


def _rates(scores: list[Score]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rates = np.array([score.all[0] / score.all[1] for score in scores])
    ends = np.array([wilson_interval(*score.all) for score in scores]).T
    return rates, np.abs(ends - rates)


def _colour(i: int) -> str:
    return (COLOURS[0], COLOURS[1], COLOURS[3])[i]
