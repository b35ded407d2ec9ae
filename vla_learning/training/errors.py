# SPDX-License-Identifier: Apache-2.0
"""Why a training run was refused or failed: one class, a stable code each (docs/errors.md)."""

from __future__ import annotations

import os


class TrainingError(Exception):
    """A run cannot begin, or did not end with a candidate.

    Attributes:
        code: stable SCREAMING_SNAKE_CASE name of the reason (docs/errors.md).
        where: the setting, file or folder at fault.
        reason: what is wrong and what to do; one line.
    """

    def __init__(self, code: str, where: str | os.PathLike[str], reason: str) -> None:
        self.code, self.where, self.reason = code, os.fspath(where), reason
        super().__init__(f"{code}: {self.where}: {self.reason}")
