# SPDX-License-Identifier: Apache-2.0
"""Which of two versions a robot or an episode runs: one hash for robot, server and replay, without a table. No ROS here.

The SHA-256 of the UTF-8 JSON array ``[experiment, robot]`` or ``[experiment, robot, episode]`` (no spaces, names as they are)
gives a number that behaves like a uniform one. Because the experiment's name is in it, a robot that was in arm B of one
experiment is in arm B of the next with the plain probability: no robot tries everything first, and what one experiment left
behind does not leak into the next.
"""

from __future__ import annotations

import hashlib
import json

A, B = 0, 1
"""The versions: A is the control (what runs in production, the incumbent), B the treatment (the candidate, the canary)."""

_UNIT = 2.0**-53


def uniform(experiment: str, robot: str, episode: str | int | None = None) -> float:
    """Return a number in [0, 1), uniform over names: the upper 53 of the first 64 bits of the hash (big-endian)."""
    parts = [experiment, robot] if episode is None else [experiment, robot, episode]
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode()
    return (int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 11) * _UNIT


def arm(experiment: str, robot: str, episode: str | int | None, probability: float) -> int:
    """Return the version, :data:`A` or :data:`B`, of a robot (``episode`` None) or of one of its episodes.

    Args:
        experiment: the salt; another name is another, independent assignment.
        robot, episode: their names; an episode may be a number.
        probability: of B.
    """
    return B if uniform(experiment, robot, episode) < probability else A
