# SPDX-License-Identifier: Apache-2.0
"""How far the stage is that a judge looks at: time, and episodes of both versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vla_fleet.rollouts.rollouts import RolloutInfo


@dataclass(frozen=True)
class Progress:
    """What the judge asks for at least, and what is there."""

    elapsed_s: float
    duration_s: float
    episodes: tuple[int, int]
    """With an outcome in this stage: of the old version, and of the new one."""
    least: int
    """That each version needs."""
    more_s: float | None
    """Until both have that at the pace of this stage [s]; None: one of them has no episode yet."""


def progress(rollout: RolloutInfo, settings: Mapping[str, Any]) -> Progress | None:
    """Return how far a rollout's stage is; None: nothing is judged.

    Args:
        rollout: with its newest verdict.
        settings: of its judge (:class:`vla_fleet.steering.evidence.Course`).
    """
    figures = rollout.verdict.get("figures", {})
    if rollout.state not in ("JUDGING", "ASKING") or "in_stage" not in figures:
        return None
    old, new = (int(number) for number in figures["in_stage"])
    elapsed_s, least = float(figures["elapsed_s"]), int(settings["config"]["min_episodes"])
    lacks = [max(0, least - number) for number in (old, new)]
    more_s = None
    if old and new:
        more_s = max(elapsed_s * lack / number for lack, number in zip(lacks, (old, new), strict=True))
    duration_s = float(rollout.stages[rollout.stage]["duration_s"])
    return Progress(elapsed_s, duration_s, (old, new), least, more_s)
