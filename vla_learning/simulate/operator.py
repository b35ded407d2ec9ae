# SPDX-License-Identifier: Apache-2.0
"""Episodes of the simulated arm as a robot records them: a policy acts, and an operator takes over where it fails.

The scripted expert plays the operator. What the policy and the operator commanded is kept at every tick, pictures at every few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vla_learning.training.examples import Examples
from vla_policy_node.policies.base import Policy
from vla_sim.arm import BLOCK_COLOURS, BLOCK_SIZE_M, CONTROL_HZ, Arm
from vla_sim.camera import render
from vla_sim.evaluate import ChunkPlayer, Execution
from vla_sim.expert import expert_chunk, goal_point
from vla_sim.task import Episode, ReachJudge, TaskRules, begin

Floats = npt.NDArray[np.float32]
_EXPERT_TICKS = 25
_WITH_OPERATOR = TaskRules(timeout_s=16.0)


@dataclass(frozen=True)
class Recording:
    """One episode.

    Attributes:
        episode: what was asked for.
        success: of the policy alone; with an operator's help it is none.
        states, actions: at every tick, ``[T, 3]`` [rad].
        taken_over: the tick at which the operator took over; None: never.
        pictures: ``[ceil(T / every), 64, 64, 3]``, the first one of tick 0.
        every: ticks between pictures.
    """

    episode: Episode
    success: bool
    states: Floats
    actions: Floats
    taken_over: int | None
    pictures: npt.NDArray[np.uint8]
    every: int

    @property
    def learnable(self) -> tuple[int, int]:
        """Ticks [first, end) that are worth learning from: of an operator, or of a success."""
        if self.taken_over is not None:
            return self.taken_over, len(self.states)
        return (0, len(self.states)) if self.success else (0, 0)


def run(arm: Arm, policy: Policy, episode: Episode, *, patience_s: float, every: int) -> Recording:
    """Run one episode; after ``patience_s`` without success the operator takes over and brings it to its end."""
    begin(arm, episode)
    policy.reset()
    player, judge = ChunkPlayer(policy, Execution()), ReachJudge(episode.colour, _WITH_OPERATOR)
    colour = BLOCK_COLOURS.index(episode.colour)
    states: list[npt.NDArray[np.float64]] = []
    actions: list[npt.NDArray[np.float64]] = []
    pictures: list[npt.NDArray[np.uint8]] = []
    taken_over: int | None = None
    ended: bool | None = None
    while ended is None:
        tick = len(states)
        if taken_over is None and tick >= patience_s * CONTROL_HZ:
            taken_over = tick
        joints = arm.state().position
        states.append(joints)
        if tick % every == 0:
            pictures.append(render(joints, arm.blocks()))
        if taken_over is None:
            command = player.next_command(arm, episode.instruction).astype(np.float64)
        else:
            since = (tick - taken_over) % _EXPERT_TICKS
            if since == 0:
                chunk = expert_chunk(joints, goal_point(arm.blocks()[colour], BLOCK_SIZE_M), _EXPERT_TICKS)
            command = chunk[since]
        actions.append(command)
        arm.command(command.tolist())
        arm.step_control_period()
        ended = judge.update(arm.state(), arm.blocks(), 1 / CONTROL_HZ)
    return Recording(
        episode=episode,
        success=ended and taken_over is None,
        states=np.asarray(states, np.float32),
        actions=np.asarray(actions, np.float32),
        taken_over=taken_over,
        pictures=np.stack(pictures),
        every=every,
    )


def examples_of(groups: list[tuple[float, list[Recording]]]) -> Examples:
    """Return examples of groups of recordings, each with its share of what is drawn; shares of empty groups go to the others."""
    states, actions, pictures = list[Floats](), list[Floats](), list[npt.NDArray[np.uint8]]()
    at, until, frames = list[int](), list[int](), list[int]()
    weights, texts = list[float](), list[str]()
    steps = seen = 0
    for share, recordings in groups:
        first = len(at)
        for recording in recordings:
            begin_, end = recording.learnable
            for number in range(len(recording.pictures)):
                tick = number * recording.every
                if not begin_ <= tick < end:
                    continue
                at.append(steps + tick)
                until.append(steps + end)
                frames.append(seen + number)
                texts.append(recording.episode.instruction)
            states.append(recording.states)
            actions.append(recording.actions)
            pictures.append(recording.pictures)
            steps, seen = steps + len(recording.states), seen + len(recording.pictures)
        weights += [share / max(1, len(at) - first)] * (len(at) - first)
    seen_pictures, of = np.concatenate(pictures), np.asarray(frames, np.intp)
    return Examples(
        states=np.concatenate(states),
        actions=np.concatenate(actions),
        at=np.asarray(at, np.intp),
        until=np.asarray(until, np.intp),
        weights=np.asarray(weights),
        instructions=texts,
        pictures=lambda index: seen_pictures[of[index]],
        rests=np.ones(len(at), np.bool_),
    )
