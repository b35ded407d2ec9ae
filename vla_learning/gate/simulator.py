# SPDX-License-Identifier: Apache-2.0
"""Candidate and base on the same seeded episodes of the simulated arm."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from vla_checkpoint import open_bundle
from vla_learning.running import load_policy
from vla_learning.workers import serve
from vla_policy_node.policies.base import Policy
from vla_sim.arm import BLOCK_COLOURS, Arm
from vla_sim.evaluate import Execution, run_episode
from vla_sim.task import Episode, instruction_for, sample_episode


def colours_in(instructions: Iterable[str]) -> tuple[str, ...]:
    """Return the block colours that some instructions ask for: the simulator's tasks."""
    words = {word for text in instructions for word in text.lower().split()}
    return tuple(colour for colour in BLOCK_COLOURS if colour in words)


def episodes_for(colours: Sequence[str], count: int, seed: int) -> list[Episode]:
    """Return ``count`` episodes that ask for these colours in turn; they depend on the seed only."""
    rng = np.random.default_rng(seed)
    wanted = [colours[i % len(colours)] for i in range(count)]
    return [replace(sample_episode(rng), colour=c, instruction=instruction_for(c, rng)) for c in wanted]


def play(bundle: str, base: str, colours: Sequence[str], count: int, seed: int, first: int, last: int) -> list[bool]:
    """Return which of the episodes ``[first, last)`` of :func:`episodes_for` succeed.

    Args:
        bundle: folder of a full bundle, or of an adapter on ``base``.
        base: folder.
        colours, count, seed, first, last: of the episodes.

    Raises:
        CheckpointError, LearningError: the policy cannot be loaded here.
    """
    return outcomes(_policy(bundle, base), episodes_for(colours, count, seed)[first:last])


@functools.cache
def _policy(bundle: str, base: str) -> Policy:
    return load_policy(open_bundle(bundle), open_bundle(base))


def outcomes(policy: Policy, episodes: Iterable[Episode]) -> list[bool]:
    """Run episodes, and return which of them succeed."""
    arm = Arm()
    return [run_episode(arm, policy, episode, Execution()).success for episode in episodes]


if __name__ == "__main__":
    serve({"play": play})
