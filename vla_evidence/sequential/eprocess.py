# SPDX-License-Identifier: Apache-2.0
"""Evidence that may be looked at after every observation: an e-process for "this event is too frequent".

H0: P(event | everything before) <= p0, whatever the dependence between observations otherwise. For an alternative p > p0 the
product of ``(p/p0)^x ((1-p)/(1-p0))^(1-x)`` is a non-negative supermartingale under H0: its factor's conditional mean
``θ p/p0 + (1-θ)(1-p)/(1-p0)`` grows with θ and is 1 at θ = p0. So is every mixture of such products over p (here: 64 values
evenly spread over (p0, 1)), and by Ville's inequality P(it ever reaches 1/α) <= α.

Turner and Grünwald, Statistics and Probability Letters 198 (2023); Ville, Étude critique de la notion de collectif (1939);
Ramdas et al., Statistical Science 38 (2023).
"""

from __future__ import annotations

import math

import numpy as np

_GRID = 64


class BernoulliEProcess:
    """E-process against H0: P(event) <= ``p0``, computed in logarithms from two counts: stable for any number of observations.

    The observations need not be independent or identically distributed; under H0 each may depend on all before it, as long as
    its conditional probability stays at or below ``p0``.

    Raises:
        ValueError: ``p0`` is not strictly between 0 and 1.
    """

    def __init__(self, p0: float) -> None:
        if not 0.0 < p0 < 1.0:
            raise ValueError(f"p0 = {p0} is not between 0 and 1")
        self.p0 = p0
        self.events = 0
        self.observations = 0
        self.max_log_e = 0.0
        """Largest ``log_e`` so far; the test rejects when this reaches log(1/α), and that is final."""
        alternatives = p0 + (1.0 - p0) * (np.arange(_GRID) + 0.5) / _GRID
        self._log_event = np.log(alternatives / p0)
        self._log_none = np.log1p(-alternatives) - math.log1p(-p0)

    def update(self, event: bool) -> float:
        """Take one observation in; return ``log_e``."""
        self.observations += 1
        self.events += bool(event)
        log_e = self.log_e
        self.max_log_e = max(self.max_log_e, log_e)
        return log_e

    @property
    def log_e(self) -> float:
        """Logarithm of the evidence against H0; 0 = none, negative = the data speak for H0."""
        exponents = self.events * self._log_event + (self.observations - self.events) * self._log_none
        top = float(exponents.max())
        return top + math.log(float(np.exp(exponents - top).mean()))

    def rejects(self, alpha: float) -> bool:
        """Whether H0 is rejected at level ``alpha`` (for good, whenever it is asked)."""
        return self.max_log_e >= -math.log(alpha)

    def restore(self, events: int, observations: int, max_log_e: float) -> None:
        """Take over what another process of the same ``p0`` had counted.

        Raises:
            ValueError: the counts are impossible.
        """
        if not (0 <= events <= observations) or not math.isfinite(max_log_e):
            raise ValueError(f"{events} events in {observations} observations, evidence {max_log_e}")
        self.events, self.observations = events, observations
        self.max_log_e = max(0.0, max_log_e, self.log_e)
