# SPDX-License-Identifier: Apache-2.0
"""Errors of the recorder. Every one carries a stable ``code`` and a text for people."""

from __future__ import annotations

import errno
from pathlib import Path


class RecorderError(Exception):
    """A recording cannot be written. ``code`` is DISK_FULL, RECORDING_IO or PARAMETER_INVALID."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


def io_error(error: OSError, path: Path) -> RecorderError:
    """Return what a failed write to ``path`` means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RecorderError("DISK_FULL", f"{path}: no space left")
    return RecorderError("RECORDING_IO", f"{path}: {error.strerror or error}")
