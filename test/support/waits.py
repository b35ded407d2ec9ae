# SPDX-License-Identifier: Apache-2.0
"""Waiting in tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

TIMEOUT_S = 60.0
"""Bound of a wait [s]: generous, because discovery takes seconds on a busy machine. Nothing asserts how long it took."""


def wait_for(predicate: Callable[[], Any], what: str = "a condition", timeout_s: float = TIMEOUT_S) -> Any:
    """Return the first true value of ``predicate``; fail when ``timeout_s`` has passed."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for {what}")
        time.sleep(0.02)
