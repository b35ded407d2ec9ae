# SPDX-License-Identifier: Apache-2.0
"""How much of the error probability α may be spent by when: spending functions.

A test that is looked at many times may reject wrongly at any of them. It keeps its promise if the probability of having
rejected by information fraction t (share of the planned observations) never exceeds f(t), with f non-decreasing, f(0) = 0 and
f(1) = α.

``linear``: f = α t stops early for a clear difference, and loses little power. ``obrien_fleming``: f = 2 - 2 Φ(z(1-α/2) / √t)
hardly spends early, and has nearly the power of one look at the end.

Lan and DeMets, Biometrika 70 (1983).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_evidence.errors import InputError, shown

SpendingFunction = Callable[[Any, float], Any]
"""f(fractions, alpha) -> probability that may be spent by each."""


def linear(fraction: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Return α t."""
    return np.asarray(alpha * np.minimum(np.asarray(fraction, dtype=np.float64), 1.0))


def obrien_fleming(fraction: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Return 2 - 2 Φ(z(1-α/2) / √t)."""
    from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]  # see intervals.py: not at a server's start

    t = np.minimum(np.asarray(fraction, dtype=np.float64), 1.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(2.0 * ndtr(float(ndtri(alpha / 2.0)) / np.sqrt(t)), alpha))


def spending_of(name: str) -> SpendingFunction:
    """Return the function of this name."""
    functions: dict[str, SpendingFunction] = {"linear": linear, "obrien_fleming": obrien_fleming}
    if name not in functions:
        raise InputError("INPUT_VALUE", "spending", f"{shown(name)} must be one of {', '.join(functions)}")
    return functions[name]
