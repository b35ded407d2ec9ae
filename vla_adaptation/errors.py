# SPDX-License-Identifier: Apache-2.0
"""Errors of local adaptation. Every one carries a stable ``code`` (docs/errors.md) and a text for people."""

from __future__ import annotations


class AdaptationError(Exception):
    """Adaptation cannot start: ADAPTATION_DIR or PARAMETER_INVALID."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message
