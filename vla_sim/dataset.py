# SPDX-License-Identifier: Apache-2.0
"""Demonstrations: what the arm sees along disturbed motions, and what the expert would do from there.

The expert has no memory, so it can be asked at any moment and for any block. Frames therefore keep only what was seen; the
expert's chunk is computed when a batch is drawn, for a colour drawn then. Disturbances (and, in later rounds, a half-trained
policy at the controls, as in DAgger, Ross et al. 2011) show the states that imperfect policies come to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vla_policy_node.policies.base import Policy
from vla_sim.arm import BLOCK_COLOURS, BLOCK_SIZE_M, Arm
from vla_sim.camera import render
from vla_sim.expert import expert_chunk, goal_point
from vla_sim.observation import observe
from vla_sim.task import begin, instruction_for, sample_episode

Array = npt.NDArray[np.float64]

_CHUNK_TICKS = 25
_FRAME_EVERY_TICKS = 8
_GOALS_PER_EPISODE = 2
_TICKS_PER_GOAL = 75


@dataclass(frozen=True)
class Frames:
    """N moments: images uint8 ``[N, 64, 64, 3]``, joints ``[N, 3]`` [rad], block centres ``[N, 4, 3]`` [m]."""

    images: npt.NDArray[np.uint8]
    joints: Array
    blocks: Array

    def __len__(self) -> int:
        return len(self.joints)

    def __add__(self, other: Frames) -> Frames:
        return Frames(
            np.concatenate([self.images, other.images]),
            np.concatenate([self.joints, other.joints]),
            np.concatenate([self.blocks, other.blocks]),
        )

    def take(self, index: npt.NDArray[np.intp]) -> Frames:
        """The frames at ``index``."""
        return Frames(self.images[index], self.joints[index], self.blocks[index])

    def mirrored(self) -> Frames:
        """The same moments seen in a mirror: y becomes -y. Camera, arm and work space are symmetric."""
        flip = np.array([1.0, -1.0, 1.0])
        return Frames(np.ascontiguousarray(self.images[:, :, ::-1]), self.joints * (-1.0, 1.0, 1.0), self.blocks * flip)


def expert_chunks(frames: Frames, colours: npt.NDArray[np.intp], horizon: int) -> Array:
    """The expert's chunks ``[N, horizon, 3]`` [rad] from the frames towards the blocks ``colours`` ``[N]``."""
    block = frames.blocks[np.arange(len(frames)), colours]
    return expert_chunk(frames.joints, goal_point(block, BLOCK_SIZE_M), horizon)


def collect(count: int, rng: np.random.Generator, pilot: Policy | None = None) -> Frames:
    """Record ``count`` frames of disturbed motions, flown by the expert or, in half of the episodes, by ``pilot``."""
    arm = Arm()
    images: list[npt.NDArray[np.uint8]] = []
    joints: list[Array] = []
    blocks: list[Array] = []
    while len(images) < count:
        begin(arm, sample_episode(rng))
        disturbance = float(rng.choice([0.0, 0.005, 0.02]))
        flown_by = pilot if rng.uniform() < 0.5 else None
        for tick in range(_GOALS_PER_EPISODE * _TICKS_PER_GOAL):
            if tick % _TICKS_PER_GOAL == 0:
                colour = int(rng.integers(len(BLOCK_COLOURS)))
                instruction = instruction_for(BLOCK_COLOURS[colour], rng)
                offset = np.zeros(3)
            if tick % _CHUNK_TICKS == 0:
                chunk = _chunk(arm, colour, instruction, flown_by)
            # A slowly wandering offset moves the arm off the expert's path; white noise would only shake it.
            offset = 0.95 * offset + disturbance * rng.normal(size=3)
            arm.command(chunk[tick % _CHUNK_TICKS] + offset)
            arm.step_control_period()
            if (tick + 1) % _FRAME_EVERY_TICKS == 0:
                joints.append(arm.state().position)
                blocks.append(arm.blocks())
                images.append(render(joints[-1], blocks[-1]))
    return Frames(np.stack(images[:count]), np.stack(joints[:count]), np.stack(blocks[:count]))


def _chunk(arm: Arm, colour: int, instruction: str, pilot: Policy | None) -> Array:
    if pilot is not None:
        return pilot.predict_chunk(observe(arm), instruction).astype(np.float64)
    return expert_chunk(arm.state().position, goal_point(arm.blocks()[colour], BLOCK_SIZE_M), _CHUNK_TICKS)
