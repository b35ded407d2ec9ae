# SPDX-License-Identifier: Apache-2.0
"""Which version a robot or an episode runs. The hash is in :mod:`vla_ros.drawing`; here are pairs and cohorts."""

from __future__ import annotations

from collections.abc import Iterable

from vla_evidence.errors import InputError
from vla_ros.drawing import A, B, arm, uniform

__all__ = ["A", "B", "arm", "arm_in_pair", "cohort", "uniform"]

_SHARE_TOLERANCE = 1e-9


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
