# SPDX-License-Identifier: Apache-2.0
"""Candidate and base on the same seeded episodes of the simulated arm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

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


def outcomes(policy: Policy, episodes: Iterable[Episode], tick: Callable[[], None] = lambda: None) -> list[bool]:
    """Run episodes, and return which of them succeed; ``tick`` is called after each."""
    arm, found = Arm(), []
    for episode in episodes:
        found.append(run_episode(arm, policy, episode, Execution()).success)
        tick()
    return found
