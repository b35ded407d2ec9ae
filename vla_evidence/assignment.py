# SPDX-License-Identifier: Apache-2.0
"""Which version a robot or an episode runs: the same on every machine, without a table, salted by the experiment's name.

The SHA-256 of the UTF-8 JSON array ``[experiment, robot]`` or ``[experiment, robot, episode]`` (no spaces, names as they are)
gives a number that behaves like a uniform one. Because the experiment's name is in it, a robot that was in arm B of one
experiment is in arm B of the next with the plain probability: no robot tries everything first, and what one experiment left
behind does not leak into the next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from vla_evidence.errors import InputError

A, B = 0, 1
"""The versions: A is the control (what runs in production, the incumbent), B the treatment (the candidate, the canary)."""

_UNIT = 2.0**-53
_SHARE_TOLERANCE = 1e-9


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


def arm_in_pair(experiment: str, robot: str, episode: int) -> tuple[int, int]:
    """Return (pair, arm) of a robot's ``episode`` number, counted from 0: two episodes make a pair, one of each arm.

    A coin of its own decides which arm comes first in each pair. So under "the arms do not differ" the sign of every
    discordant pair is a fair coin *by design*: whatever the robot, the task, the time of day, and whatever the first
    episode of a pair does to the second.
    """
    pair, second = divmod(episode, 2)
    first = arm(experiment, robot, f"pair {pair}", 0.5)
    return pair, first if not second else (A if first == B else B)


def cohort(experiment: str, robots: Iterable[str], share: float) -> tuple[str, ...]:
    """Return the robots of a rollout's stage: ``share`` of the fleet, rounded down but at least one, in the order of their hash.

    Cohorts of one experiment are nested: who is in at one share is in at every larger one.
    """
    names = list(robots)
    if not names or len(set(names)) < len(names):
        raise InputError("INPUT_COUNT", "robots", "one is named twice" if names else "there is none")
    ranked = sorted(names, key=lambda robot: (uniform(experiment, robot), robot))
    return tuple(ranked[: max(1, int(share * len(ranked) + _SHARE_TOLERANCE))])
