# SPDX-License-Identifier: Apache-2.0
"""How much of the error probability α may be spent by when: spending functions.

A test that is looked at many times may reject wrongly at any of them. It keeps its promise if the probability of having rejected
by information fraction t (share of the planned observations) never exceeds f(t), f non-decreasing, f(0) = 0, f(1) = α.
Which f is a choice between finding large differences early and small ones at all:

=================  ===========================================  ==========================================================
``linear``         α t                                          early stopping for a clear difference; little power is lost
``obrien_fleming`` 2 - 2 Φ(z(1-α/2) / √t)                       hardly spends early: nearly the power of one look at the end
``pocock``         α ln(1 + (e-1) t)                            spends early: shortest tests for large differences
``power:ρ``        α t^ρ                                        between the two; ρ = 1 is linear, ρ = 3 close to O'Brien-Fleming
=================  ===========================================  ==========================================================

Lan and DeMets, Biometrika 70 (1983); Kim and DeMets, Biometrika 74 (1987) for the power family.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]

from vla_evidence.errors import InputError, check_probability, shown

_FAMILIES = ("linear", "obrien_fleming", "pocock", "power")


@dataclass(frozen=True)
class Spending:
    """One spending function; its text form (``str``) is what :meth:`parse` reads.

    Args:
        family: linear, obrien_fleming, pocock or power.
        rho: exponent of the power family, positive; 1 otherwise.
    """

    family: str = "linear"
    rho: float = 1.0

    def __post_init__(self) -> None:
        if self.family not in _FAMILIES:
            raise InputError("INPUT_VALUE", "spending", f"{self.family!r} is none of {', '.join(_FAMILIES)}")
        if not (math.isfinite(self.rho) and self.rho > 0.0):
            raise InputError("INPUT_VALUE", "spending", f"the exponent {self.rho} is not positive")
        if self.family != "power" and self.rho != 1.0:
            raise InputError("INPUT_VALUE", "spending", f"{self.family} has no exponent")

    def __call__(self, fraction: ArrayLike, alpha: float) -> NDArray[np.float64]:
        """Return what may be spent by each ``fraction`` of the information (any shape; 1 and above: ``alpha``).

        Raises:
            InputError: INPUT_PROBABILITY: ``alpha``; INPUT_VALUE: a negative fraction, or one that is no number.
        """
        check_probability("alpha", alpha)
        t = np.asarray(fraction, dtype=np.float64)
        if not bool((t >= 0.0).all()):
            raise InputError("INPUT_VALUE", "fraction", "not all are 0 or above")
        t = np.minimum(t, 1.0)
        spent = {"obrien_fleming": _obrien_fleming, "pocock": _pocock}.get(self.family, self._power)(t, alpha)
        return np.asarray(np.where(t >= 1.0, alpha, np.clip(spent, 0.0, alpha)))

    def __str__(self) -> str:
        return f"power:{self.rho!r}" if self.family == "power" else self.family

    @staticmethod
    def parse(text: str) -> Spending:
        """Return the function that ``linear``, ``obrien_fleming``, ``pocock`` or ``power:1.5`` names.

        Raises:
            InputError: INPUT_VALUE: none of these.
        """
        if not isinstance(text, str):
            raise InputError("INPUT_VALUE", "spending", f"{shown(text)} is no name of a spending function")
        family, colon, exponent = text.partition(":")
        if (family == "power") != bool(colon):
            raise InputError("INPUT_VALUE", "spending", f"{text!r}: the power family, and no other, has an exponent")
        try:
            rho = float(exponent) if colon else 1.0
        except ValueError as e:
            raise InputError("INPUT_VALUE", "spending", f"{text!r}: {exponent!r} is no number") from e
        return Spending(family, rho)

    def _power(self, t: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
        return np.asarray(alpha * t**self.rho)


LINEAR = Spending("linear")
OBRIEN_FLEMING = Spending("obrien_fleming")
POCOCK = Spending("pocock")


def _obrien_fleming(t: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    z = -float(ndtri(alpha / 2.0))
    with np.errstate(divide="ignore"):
        return np.asarray(2.0 * ndtr(-z / np.sqrt(t)))


def _pocock(t: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    return np.asarray(alpha * np.log1p(math.expm1(1.0) * t))
