# SPDX-License-Identifier: Apache-2.0
"""Anomaly scores from action chunks alone; larger is worse.

Every channel is divided by ``scale``, the largest step the robot contract allows it in one control period, so that scores
have no unit and channels of different units can be added. They see erratic policies; a policy that is wrong but consistent
is invisible to them (that is what episode outcomes are for). Definitions: Agia et al., "Unpacking Failure Modes of Generative
Policies" (Sentinel), arXiv 2410.04640, section 4 (temporal consistency); the reversal rate and magnitude are common practice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Actions = npt.NDArray[np.float32]
Scale = npt.NDArray[np.float64]


def temporal_consistency_error(previous: Actions, current: Actions, shift: int, scale: Scale) -> float | None:
    """Mean distance between two chunks over the ticks that both predict.

    Args:
        previous: float32 ``[H, A]``; current: float32 ``[H', A]``, made ``shift`` ticks later.
        shift: ticks from ``previous``'s first action to ``current``'s, >= 0.
        scale: float64 ``[A]``, > 0.

    Returns:
        mean over i of ``‖(previous[shift + i] − current[i]) / scale‖₂``, or ``None`` without overlap.
    """
    overlap = min(len(previous) - shift, len(current))
    if shift < 0 or overlap < 1:
        return None
    difference = (previous[shift : shift + overlap].astype(np.float64) - current[:overlap]) / scale
    return float(np.linalg.norm(difference, axis=1).mean())


def reversal_rate(actions: Actions, scale: Scale, deadband: float) -> float:
    """Share of steps, over all channels, whose direction is opposite to the step before.

    Args:
        actions: positions, float32 ``[T, A]``.
        scale: float64 ``[A]``, > 0.
        deadband: steps smaller than this share of ``scale`` count as no step.

    Returns:
        0 to 1; 0 for fewer than three actions.
    """
    steps = np.diff(actions.astype(np.float64), axis=0) / scale
    if len(steps) < 2:
        return 0.0
    steps[np.abs(steps) < deadband] = 0.0
    return float(np.mean(steps[1:] * steps[:-1] < 0.0))


def magnitude(actions: Actions, scale: Scale) -> float:
    """Mean length of a step: mean over i of ``‖(a[i+1] − a[i]) / scale‖₂``; 0 for fewer than two actions."""
    steps = np.diff(actions.astype(np.float64), axis=0) / scale
    return float(np.linalg.norm(steps, axis=1).mean()) if len(steps) else 0.0


@dataclass(frozen=True)
class Chunk:
    """A chunk as it was taken over: ``tick`` is when its first action was meant to act."""

    generation: int
    tick: int
    execute: int  # actions of it that act, normally
    actions: Actions


class ChunkScorer:
    """Scores each chunk against the one before it of the same generation."""

    def __init__(self, scale: Scale, deadband: float) -> None:
        self._scale, self._deadband = scale, deadband
        self._previous: Chunk | None = None

    def reset(self) -> None:
        """Forget the last chunk: after a hold, at a new episode."""
        self._previous = None

    def score(self, chunk: Chunk) -> dict[str, float]:
        """Return the scores of ``chunk`` by source; ``tce`` only if it overlaps its predecessor."""
        previous, self._previous = self._previous, chunk
        acting = chunk.actions[: chunk.execute]
        scores = {
            "reversal": reversal_rate(acting, self._scale, self._deadband),
            "magnitude": magnitude(acting, self._scale),
        }
        if previous is not None and previous.generation == chunk.generation:
            error = temporal_consistency_error(previous.actions, chunk.actions, chunk.tick - previous.tick, self._scale)
            if error is not None:
                scores["tce"] = error
        return scores
