# SPDX-License-Identifier: Apache-2.0
"""Why a training run was refused or failed: a stable code each (docs/errors.md)."""

from __future__ import annotations

from vla_learning.errors import LearningError


class TrainingError(LearningError):
    """A run cannot begin, or did not end with a candidate: TRAINING_ or TRAINER_ codes."""
