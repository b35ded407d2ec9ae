# SPDX-License-Identifier: Apache-2.0
"""Child processes: those of a process, and those that may outlive the test that started them (see ``conftest.py``)."""

from __future__ import annotations

import contextlib
from pathlib import Path

KEPT: set[int] = set()
"""Ids of processes that a fixture of the whole file ends."""


def children(pid: int | str = "self") -> set[int]:
    """Return the children of a process, zombies included."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found.update(map(int, task.read_text().split()))
    return found
