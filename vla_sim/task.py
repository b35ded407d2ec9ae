# SPDX-License-Identifier: Apache-2.0
"""The task: "reach the red block". Instructions, seeded layouts, and when an episode has succeeded or run out of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vla_sim.arm import BLOCK_COLOURS, BLOCK_SIZE_M, HOME_RAD, POSITION_LIMITS_RAD, Arm, ArmState
from vla_sim.kinematics import joints_for, tip_position

Array = npt.NDArray[np.float64]

PHRASINGS = ("reach the {} block", "touch the {} block", "move to the {} block", "go to the {} one")

REACH_M = (0.21, 0.42)
YAW_RAD = (-0.9, 0.9)
BLOCK_DISTANCE_M = 0.10
TIP_CLEARANCE_M = 0.07


@dataclass(frozen=True)
class TaskRules:
    """When the tip rests on a block, and how long an episode may take."""

    radius_m: float = 0.03  # horizontal distance from the block's middle
    height_m: float = 0.04  # of the tip's centre over the block's top
    speed_m_s: float = 0.05  # slower than this counts as resting
    dwell_s: float = 0.3  # for this long
    timeout_s: float = 8.0


@dataclass(frozen=True)
class Episode:
    """One attempt: what is asked for, and where things are at its start."""

    colour: str
    instruction: str
    start_joints: tuple[float, float, float]  # [rad]
    layout: Array  # [4, 2] block positions (x, y) [m], in the order of BLOCK_COLOURS


def instruction_for(colour: str, rng: np.random.Generator) -> str:
    """One of the phrasings that ask for the block of this colour."""
    return PHRASINGS[int(rng.integers(len(PHRASINGS)))].format(colour)


def sample_layout(rng: np.random.Generator, tip: npt.ArrayLike | None = None) -> Array:
    """Block positions ``[4, 2]`` [m], apart from each other and, if given, from the tip's position (x, y, ...) [m].

    With these clearances nearly every attempt finds room.
    """
    while True:
        placed: list[Array] = [] if tip is None else [np.asarray(tip, dtype=np.float64)[:2]]
        blocks: list[Array] = []
        for _ in range(100):
            # Uniform over the area of the ring segment: the radius is the root of a uniform number.
            r, yaw = np.sqrt(rng.uniform(REACH_M[0] ** 2, REACH_M[1] ** 2)), rng.uniform(*YAW_RAD)
            spot = np.array([r * np.cos(yaw), r * np.sin(yaw)])
            near_tip = placed and np.linalg.norm(spot - placed[0]) < TIP_CLEARANCE_M
            if near_tip or any(np.linalg.norm(spot - other) < BLOCK_DISTANCE_M for other in blocks):
                continue
            blocks.append(spot)
            if len(blocks) == len(BLOCK_COLOURS):
                return np.stack(blocks)


def sample_start(rng: np.random.Generator) -> tuple[float, float, float]:
    """Joints [rad] with the tip somewhere over the work space: low as after an episode, or high as after a start."""
    if rng.uniform() < 0.2:
        return HOME_RAD
    q = joints_for([rng.uniform(*YAW_RAD), rng.uniform(*REACH_M), rng.uniform(0.05, 0.25)])
    low, high = np.transpose(POSITION_LIMITS_RAD)
    j1, j2, j3 = (float(v) for v in np.clip(q, low, high))
    return j1, j2, j3


def sample_episode(rng: np.random.Generator) -> Episode:
    """A whole seeded episode."""
    start = sample_start(rng)
    colour = BLOCK_COLOURS[int(rng.integers(len(BLOCK_COLOURS)))]
    return Episode(colour, instruction_for(colour, rng), start, sample_layout(rng, tip_position(start)))


class ReachJudge:
    """Says when an episode has ended, from measurements at a steady rate."""

    def __init__(self, colour: str, rules: TaskRules | None = None) -> None:
        self._colour = BLOCK_COLOURS.index(colour)
        self.rules = rules or TaskRules()
        self._elapsed_s = 0.0
        self._rested_s = 0.0

    def update(self, state: ArmState, blocks: Array, dt_s: float) -> bool | None:
        """Count ``dt_s`` seconds in this state; True: succeeded, False: out of time, None: go on."""
        self._elapsed_s += dt_s
        self._rested_s = self._rested_s + dt_s if self.resting(state, blocks[self._colour]) else 0.0
        if self._rested_s >= self.rules.dwell_s:
            return True
        return False if self._elapsed_s >= self.rules.timeout_s else None

    def resting(self, state: ArmState, block: Array) -> bool:
        """Whether the tip is on the block ``[3]`` [m] and slow."""
        over = np.linalg.norm(state.tip[:2] - block[:2])
        height = state.tip[2] - (block[2] + BLOCK_SIZE_M / 2)
        return bool(
            over <= self.rules.radius_m and height <= self.rules.height_m and state.tip_speed <= self.rules.speed_m_s
        )


def begin(arm: Arm, episode: Episode) -> None:
    """Put the arm and the blocks where the episode begins."""
    arm.reset(episode.start_joints)
    arm.place_blocks(episode.layout)
