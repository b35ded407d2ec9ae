# SPDX-License-Identifier: Apache-2.0
"""Did the canary get the share of units that it was to get? A sample-ratio mismatch voids every comparison that rests on it.

H0: each unit goes to the canary with its stated probability π. With odds that are θ times the stated ones the likelihood ratio
of a unit is ``θ^g / (1 - π + θ π)``, of mean 1 under H0; its product, and the mean over several θ, is an e-process. It depends on
counts alone and may be looked at at any time.

Lindon and Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022; Fabijan et al., KDD 2019 (what goes wrong).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from vla_evidence.errors import check_counts, check_probability

_TILTS = np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2, 2 / 3, 0.8, 1.25, 1.5, 2.0, 4.0, 8.0, 16.0])


def assignment_log_e(units: Iterable[tuple[float, float, float]]) -> float:
    """Return the logarithm of the evidence that units were not assigned as stated.

    Args:
        units: (π, units of the incumbent, units of the canary) for each probability that was used.

    Raises:
        InputError: a probability that is not strictly between 0 and 1, or a negative count.
    """
    exponents = np.zeros(len(_TILTS))
    for probability, incumbents, canaries in units:
        check_probability("probability", probability)
        check_counts("units", 0, incumbents)
        check_counts("units", 0, canaries)
        exponents += canaries * np.log(_TILTS) - (incumbents + canaries) * np.log1p(probability * (_TILTS - 1.0))
    top = float(exponents.max())
    return top + math.log(float(np.exp(exponents - top).mean()))
