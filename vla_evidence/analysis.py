# SPDX-License-Identifier: Apache-2.0
"""Packages for analysis at a desk (matplotlib, tqdm): imported where they are used, never on a robot's path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from vla_evidence.errors import EvidenceError

PIP_LINE = "pip install matplotlib tqdm"

Tick = Callable[[int], None]
"""Receives the number of steps done since the last call."""
Bar = Callable[[str, int], AbstractContextManager[Tick]]
"""Opens a progress bar with a label and a number of steps."""


@contextmanager
def analysis_packages() -> Iterator[None]:
    """Import packages for analysis inside this block."""
    try:
        yield
    except ModuleNotFoundError as e:
        reason = f"is not installed here; plots and progress bars need it: {PIP_LINE}"
        raise EvidenceError("ANALYSIS_MISSING", e.name or "analysis", reason) from e


@contextmanager
def no_bar(label: str, steps: int) -> Iterator[Tick]:
    """Show nothing."""
    yield lambda done: None


@contextmanager
def tqdm_bar(label: str, steps: int) -> Iterator[Tick]:
    """Show a progress bar on standard error."""
    with analysis_packages():
        from tqdm import tqdm
    with tqdm(total=steps, desc=label, file=sys.stderr, unit="run", leave=True, mininterval=0.5) as bar:
        yield lambda done: bar.update(done) and None
