# SPDX-License-Identifier: Apache-2.0
"""What a policy learns from: moments of recorded episodes, each with the actions that followed it.

An example is a moment: picture, state, instruction, and as its target the chunk of actions that were commanded from then on. The
target ends where the demonstration does (``until``). What lies behind is masked, or, where the demonstration came to rest, the
last command is held: else nothing would teach the end of a chunk to stay, and the arm trembles where it should rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.intp]
Pictures = Callable[[Index], npt.NDArray[np.uint8]]
"""Returns the pictures ``[n, H, W, 3]`` of examples by number."""


@dataclass(frozen=True)
class Examples:
    """N examples over T recorded steps.

    Attributes:
        states: of every step, ``[T, S]``, physical units.
        actions: commanded at every step, ``[T, A]``, physical units.
        at: step of each example, ``[N]``.
        until: the first step that no longer belongs to the example's demonstration, ``[N]``, above ``at``.
        weights: how often each example is drawn, relative to the others, ``[N]``; 0: never.
        instructions: N texts.
        pictures: gives the examples' pictures.
        rests: whether each example's demonstration came to rest at its end, ``[N]``; None: none did.
    """

    states: Floats
    actions: Floats
    at: Index
    until: Index
    weights: npt.NDArray[np.float64]
    instructions: Sequence[str]
    pictures: Pictures
    rests: npt.NDArray[np.bool_] | None = None
    _cumulated: npt.NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_cumulated", np.cumsum(self.weights))

    def __len__(self) -> int:
        return len(self.at)

    @property
    def total_weight(self) -> float:
        """Sum of the weights; 0: there is nothing to draw."""
        return float(self._cumulated[-1]) if len(self) else 0.0

    def draw(self, count: int, rng: np.random.Generator) -> Index:
        """Return ``count`` numbers of examples, drawn by weight with replacement."""
        drawn = rng.random(count) * self.total_weight
        return np.minimum(np.searchsorted(self._cumulated, drawn, side="right"), len(self) - 1)

    def chunks(self, index: Index, horizon: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return the actions that followed, ``[n, horizon, A]``, and which of them count, ``[n, horizon]``.

        Behind a demonstration's end its last action is repeated; that counts if it came to rest there.
        """
        steps = self.at[index, None] + np.arange(horizon)
        counts = steps < self.until[index, None]
        if self.rests is not None:
            counts |= self.rests[index, None]
        return self.actions[np.minimum(steps, self.until[index, None] - 1)], counts
