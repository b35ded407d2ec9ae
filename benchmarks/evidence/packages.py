# SPDX-License-Identifier: Apache-2.0
"""STEP and SAVI from the package of their authors, if the user has installed it: for comparison only, never a dependency.

``sequentialized_barnard_tests`` (github.com/TRI-ML/sequentialized_barnard_tests, arXiv 2503.10966) may not be used commercially
(CC BY-NC), so nothing of it is here but calls of its documented interface. STEP needs a policy that its own script has
synthesised for N and α before; without one it is left out, with the reason.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.ab_rules import Pairs, Successes

PACKAGE = "sequentialized_barnard_tests"
TESTS = ("STEP", "SAVI")


def unavailable(test: str, pairs: int, alpha: float) -> str | None:
    """Return why a test of at most ``pairs`` pairs cannot be run here, None if it can."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return "not installed"
    if test == "STEP":
        policy = f"n_max_{pairs}_alpha_{alpha}_shape_parameter_0.0_pnorm_False"
        if not (Path(spec.origin).parent / "policies" / policy / "policy_compressed.pkl").exists():
            return "policy not synthesised"
    return None


def stop(test: str, a: Successes, b: Successes, alpha: float) -> Pairs:
    """Return when the package's test says "B succeeds more often", pair by pair as its interface has it.

    Raises:
        ImportError: the package is not installed.
    """
    base = importlib.import_module(f"{PACKAGE}.base")
    judge = _make(test, base.Hypothesis.P0LessThanP1, a.shape[1], alpha)
    stops = np.zeros(len(a), dtype=np.int64)
    for run in range(len(a)):
        judge.reset()
        for pair in range(a.shape[1]):
            if judge.step(int(a[run, pair]), int(b[run, pair])).decision == base.Decision.AcceptAlternative:
                stops[run] = pair + 1
                break
    return stops


def _make(test: str, alternative: Any, pairs: int, alpha: float) -> Any:
    if test == "STEP":
        return importlib.import_module(f"{PACKAGE}.step").StepTest(alternative, pairs, alpha)
    return importlib.import_module(f"{PACKAGE}.savi").SaviTest(alternative, alpha)
