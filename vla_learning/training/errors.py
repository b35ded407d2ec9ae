# SPDX-License-Identifier: Apache-2.0
"""Why a training run was refused or failed: a stable code each (docs/errors.md)."""

from __future__ import annotations

from typing import Any

from vla_learning.errors import LearningError


class TrainingError(LearningError):
    """A run cannot begin, or did not end with a candidate: TRAINING_ or TRAINER_ codes."""


def check_range(settings: Any, **bounds: tuple[float, float]) -> None:
    """Refuse a setting that is out of its bounds (both are allowed).

    Raises:
        TrainingError: ``TRAINING_SETTING``.
    """
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise TrainingError("TRAINING_SETTING", name, f"is {value:g}; at least {low:g}, at most {high:g}")
