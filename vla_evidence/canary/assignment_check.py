# SPDX-License-Identifier: Apache-2.0
"""Were units assigned as stated? If not, no comparison that rests on it holds. Two e-processes, to be looked at at any time.

**Share.** H0: each unit goes to the canary with its stated probability π. With odds that are θ times the stated ones the
likelihood ratio of a unit is ``θ^g / (1 - π + θ π)``, of mean 1 under H0; its product, and the mean over several θ, is an
e-process. It depends on counts alone.

**Sticking.** H0 says also that a robot's next episode is drawn anew. If instead whole robots run one version, their episodes are
no units, though the share may be right. Against it: with probability 1/2 the robot stays with the group g' that it had last, else
it is drawn. The factor ``1/2 + [g = g'] / (2 P(g))`` has mean 1 under H0.

Lindon and Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022; Fabijan et al., KDD 2019 (what goes wrong).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vla_evidence.errors import InputError, check_counts, check_probability
from vla_evidence.sequential.two_sample import CANARY, INCUMBENT

ALPHA = 1e-3
"""P(correctly assigned units are ever called wrongly assigned), for each of the two checks."""
_TILTS = np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2, 2 / 3, 0.8, 1.25, 1.5, 2.0, 4.0, 8.0, 16.0])


class AssignmentCheck:
    """Units as they are assigned. The sticking of robots is looked for in each stage anew, and stays found."""

    def __init__(self) -> None:
        self._units: dict[float, list[int]] = {}
        self._last: dict[str, int] = {}
        self._sticking = self._max_sticking = 0.0

    def begin_stage(self) -> None:
        """Forget which group the robots had last."""
        self._last, self._sticking = {}, 0.0

    def add(self, robot: str, group: int, probability: float) -> None:
        """Take in one unit that is assigned."""
        self._units.setdefault(probability, [0, 0])[group] += 1
        last = self._last.get(robot)
        if last is not None:
            own = probability if last == CANARY else 1.0 - probability
            self._sticking += math.log(0.5 + 0.5 / own * (group == last))
            self._max_sticking = max(self._max_sticking, self._sticking)
        self._last[robot] = group

    def add_many(self, groups: ArrayLike, probability: float) -> None:
        """Take in units of unknown robots."""
        counts = self._units.setdefault(probability, [0, 0])
        canaries = int(np.count_nonzero(np.asarray(groups)))
        counts[CANARY] += canaries
        counts[INCUMBENT] += np.asarray(groups).size - canaries

    @property
    def units(self) -> tuple[int, int]:
        """Assigned to the incumbent and to the canary."""
        counts = list(self._units.values())
        return sum(count[INCUMBENT] for count in counts), sum(count[CANARY] for count in counts)

    @property
    def largest_log_e(self) -> float:
        """No evidence on harm can exceed this: a unit's factor is at most 1 / min(π, 1 - π)."""
        return math.fsum(-sum(n) * math.log(min(pi, 1.0 - pi)) for pi, n in self._units.items())

    def fault(self) -> str:
        """Return what is wrong with the assignment, in words; empty if nothing is."""
        level = -math.log(ALPHA)
        if self._max_sticking >= level:
            return "robots stay with one version although each of their episodes was to be drawn"
        if assignment_log_e((pi, n0, n1) for pi, (n0, n1) in self._units.items()) >= level:
            canaries = self.units[CANARY]
            return (
                f"the canary got {canaries} of {sum(self.units)} episodes, which is not the share that was to be drawn"
            )
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return the state for :meth:`restore`."""
        units = [[probability, *counts] for probability, counts in self._units.items()]
        return {"units": units, "last": self._last, "sticking": [self._sticking, self._max_sticking]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state.

        Raises:
            InputError, KeyError, TypeError, ValueError: it cannot be one.
        """
        self._units = {}
        for probability, *counts in state["units"]:
            possible = len(counts) == 2 and all(type(count) is int and count >= 0 for count in counts)
            if not possible or probability in self._units:
                raise InputError("INPUT_COUNT", "assigned", f"{counts!r} at {probability!r}")
            self._units[check_probability("probability", probability)] = list(counts)
        self._last = dict(state["last"])
        if not all(type(group) is int and group in (INCUMBENT, CANARY) for group in self._last.values()):
            raise InputError("INPUT_ARM", "last", "some are of no group")
        self._sticking, self._max_sticking = (float(value) for value in state["sticking"])
        if not (math.isfinite(self._max_sticking) and self._sticking <= self._max_sticking):
            raise InputError("INPUT_VALUE", "sticking", f"{state['sticking']!r}")


def assignment_log_e(units: Iterable[tuple[float, float, float]]) -> float:
    """Return the logarithm of the evidence that units were not assigned in the stated share.

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
