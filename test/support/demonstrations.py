# SPDX-License-Identifier: Apache-2.0
"""Demonstrations for a two-joint ``tiny_vla`` that can be learned in seconds: "red block" moves one way, "block" the other."""

from __future__ import annotations

import numpy as np

from vla_learning.training.examples import Examples

HORIZON = 20


def demonstrations(count: int = 40, length: int = 30, seed: int = 0) -> Examples:
    """``count`` demonstrations of ``length`` steps with an example at every step; pictures are noise."""
    rng = np.random.default_rng(seed)
    starts = rng.normal(scale=0.3, size=(count, 1, 2))
    way = np.where(np.arange(count) % 2, 1.0, -1.0)[:, None, None] * (0.05, -0.05)
    states = starts + way * np.arange(length)[None, :, None]
    actions = states + way
    pictures = rng.integers(0, 255, (count * length, 32, 32, 3), dtype=np.uint8)
    at = np.arange(count * length)
    return Examples(
        states=states.reshape(-1, 2).astype(np.float32),
        actions=actions.reshape(-1, 2).astype(np.float32),
        at=at,
        until=(at // length + 1) * length,
        weights=np.ones(len(at)),
        instructions=[("block", "red block")[i // length % 2] for i in at],
        pictures=lambda index: pictures[index],
    )
