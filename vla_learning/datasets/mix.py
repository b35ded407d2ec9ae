# SPDX-License-Identifier: Apache-2.0
"""How often each frame is drawn in training: so much replay, so much new, and of the new part corrections more often.

With a share ``c`` of corrections in the new part and ``k`` times the weight for each, ``k c / (1 + (k - 1) c)`` of what is drawn
from the new part are corrections; for ``k = 10`` and ``c = 5 %`` that is 34 %.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Mix:
    """Frames of the three kinds, and their weights, whose sum over all frames is the number of frames."""

    replay_frames: int
    new_frames: int
    corrections: int
    """Of the new frames."""
    replay_share: float
    """Of all weight."""
    replay_weight: float
    new_weight: float
    correction_weight: float

    @property
    def frames(self) -> int:
        """All frames."""
        return self.replay_frames + self.new_frames

    @property
    def corrections_of_new(self) -> float:
        """Share of the new part's weight that corrections have."""
        plain = (self.new_frames - self.corrections) * self.new_weight
        corrected = self.corrections * self.correction_weight
        return corrected / (plain + corrected)

    @property
    def effective_frames(self) -> float:
        """Kish's effective sample size, ``(Σw)² / Σw²``: so many equally weighted frames vary as little as these."""
        squares = (
            self.replay_frames * self.replay_weight**2
            + (self.new_frames - self.corrections) * self.new_weight**2
            + self.corrections * self.correction_weight**2
        )
        return self.frames**2 / squares

    def weights(self, intervention: npt.NDArray[np.bool_], *, new: bool) -> npt.NDArray[np.float32]:
        """Return the weights of an episode's frames, ``[T]``."""
        if not new:
            return np.full(len(intervention), self.replay_weight, np.float32)
        return np.where(intervention, self.correction_weight, self.new_weight).astype(np.float32)

    def as_json(self) -> dict[str, Any]:
        """Return all of it."""
        more = {"frames": self.frames, "corrections_of_new": self.corrections_of_new}
        return {**asdict(self), **more, "effective_frames": self.effective_frames}


def mix(replay_frames: int, new_frames: int, corrections: int, replay_share: float, correction_weight: float) -> Mix:
    """Return the weights. Without old frames there is no replay.

    Args:
        replay_frames: frames of the replay buffer.
        new_frames: new frames, more than 0.
        corrections: those of them that an operator commanded.
        replay_share: of all weight.
        correction_weight: of a correction, relative to another new frame.
    """
    frames = replay_frames + new_frames
    share = replay_share if replay_frames else 0.0
    each = (1.0 - share) * frames / (new_frames + (correction_weight - 1.0) * corrections)
    replay = share * frames / replay_frames if replay_frames else 0.0
    return Mix(replay_frames, new_frames, corrections, share, replay, each, each * correction_weight)
