# SPDX-License-Identifier: Apache-2.0
"""How good is a policy: seeded episodes with chunks executed as the policy node executes them.

A chunk is asked for when the current one has run ``execute`` ticks; while it is computed (``latency`` ticks) the arm goes on with
the current one; then it takes over at the action that was meant for that moment. Latency is simulated in ticks, so that a result
depends on the seed only, not on the machine's load.

    python -m vla_sim.evaluate vla_sim/bundles/reach_block/1.0.0 --episodes 200 --seed 1000
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vla_policy_node.policies.base import FloatArray, Policy
from vla_sim.arm import CONTROL_HZ, JOINT_NAMES, VELOCITY_LIMITS_RAD_S, Arm
from vla_sim.bundle import load_policy
from vla_sim.observation import observe
from vla_sim.task import Episode, ReachJudge, begin, sample_episode

Array = npt.NDArray[np.float64]

REVERSAL_DEADBAND_RAD = 0.001
"""Steps shorter than this (norm over the joints) count as standing still, not as a change of direction."""


@dataclass(frozen=True)
class Execution:
    """How chunks are executed. ``execute`` None: what the policy's ``n_action_steps`` says."""

    latency_ticks: int = 2
    execute: int | None = None
    blend_ticks: int = 5  # over which a new chunk takes over from the old one's overlap


class ChunkPlayer:
    """Turns chunks into one command a tick."""

    def __init__(self, policy: Policy, execution: Execution) -> None:
        self._policy, self._execution = policy, execution
        self._execute = execution.execute or policy.spec.execute
        if not execution.latency_ticks < self._execute <= policy.spec.horizon - execution.latency_ticks:
            raise ValueError(
                f"execute={self._execute} with latency {execution.latency_ticks} does not fit H={policy.spec.horizon}"
            )
        self._current: FloatArray | None = None
        self._previous: FloatArray | None = None
        self._coming: FloatArray | None = None
        self._age = 0  # ticks since the observation of the current chunk
        self.chunks: list[FloatArray] = []

    def next_command(self, arm: Arm, instruction: str) -> FloatArray:
        """The command of this tick, ``[A]``."""
        latency = self._execution.latency_ticks
        if self._current is None:  # nothing to go on with yet: the arm waits for its first chunk
            self._current = self._ask(arm, instruction)
        elif self._age == self._execute:
            self._coming = self._ask(arm, instruction)
        elif self._coming is not None and self._age == self._execute + latency:
            self._previous, self._current, self._coming, self._age = self._current, self._coming, None, latency
        command = self._blended(self._age)
        self._age += 1
        return command

    def _ask(self, arm: Arm, instruction: str) -> FloatArray:
        chunk = self._policy.predict_chunk(observe(arm), instruction)
        self.chunks.append(chunk)
        return chunk

    def _blended(self, age: int) -> FloatArray:
        assert self._current is not None
        since = age - self._execution.latency_ticks
        if self._previous is None or since >= self._execution.blend_ticks or age + self._execute >= len(self._previous):
            action: FloatArray = self._current[age]
            return action
        weight = np.float32((since + 1) / (self._execution.blend_ticks + 1))
        mixed: FloatArray = weight * self._current[age] + (1 - weight) * self._previous[age + self._execute]
        return mixed


@dataclass
class EpisodeResult:
    """One episode, measured."""

    success: bool
    duration_s: float
    temporal_consistency: list[float] = field(default_factory=list)  # one a pair of chunks [rad]
    reversal_rate: list[float] = field(default_factory=list)  # one a chunk, share of its steps
    worst_step: float = 0.0  # largest step of a joint between two commands, as a share of its velocity limit


def temporal_consistency_error(old: FloatArray, new: FloatArray, executed: int) -> float:
    """Mean over the overlap of ‖old[executed + i] - new[i]‖ [rad] (facts of chunked policies: they should agree)."""
    overlap = len(old) - executed
    return float(np.linalg.norm(old[executed:] - new[:overlap], axis=-1).mean())


def reversal_rate(actions: FloatArray, deadband: float = REVERSAL_DEADBAND_RAD) -> float:
    """Share of pairs of successive steps with ``Δa_t · Δa_{t-1} < 0``, both longer than the deadband [rad]."""
    steps = np.diff(actions, axis=0)
    moving = np.linalg.norm(steps, axis=-1) > deadband
    against = np.einsum("ij,ij->i", steps[1:], steps[:-1]) < 0
    return float((against & moving[1:] & moving[:-1]).mean())


def run_episode(arm: Arm, policy: Policy, episode: Episode, execution: Execution) -> EpisodeResult:
    """Run one episode from its start."""
    begin(arm, episode)
    policy.reset()
    player, judge = ChunkPlayer(policy, execution), ReachJudge(episode.colour)
    step_limit = np.asarray(VELOCITY_LIMITS_RAD_S) / CONTROL_HZ
    success: bool | None = None
    ticks, worst, previous = 0, 0.0, arm.commanded
    while success is None:
        command = player.next_command(arm, episode.instruction)
        worst = max(worst, float((np.abs(command - previous) / step_limit).max()))
        previous = command.astype(np.float64)
        arm.command(command.tolist())
        arm.step_control_period()
        ticks += 1
        success = judge.update(arm.state(), arm.blocks(), 1 / CONTROL_HZ)
    executed = execution.execute or policy.spec.execute
    pairs = itertools.pairwise(player.chunks)
    return EpisodeResult(
        success=success,
        duration_s=ticks / CONTROL_HZ,
        temporal_consistency=[temporal_consistency_error(old, new, executed) for old, new in pairs],
        reversal_rate=[reversal_rate(chunk[:executed]) for chunk in player.chunks],
        worst_step=worst,
    )


@dataclass(frozen=True)
class Evaluation:
    """A policy over many episodes; quantiles are 50, 95 and 100 %."""

    episodes: int
    successes: int
    mean_success_s: float  # duration of the successful ones
    temporal_consistency_rad: tuple[float, float, float]
    reversal_rate: tuple[float, float, float]
    worst_step: tuple[float, float, float]

    @property
    def success_rate(self) -> float:
        """Successes per episode."""
        return self.successes / self.episodes


def episodes_of(count: int, seed: int) -> Iterator[Episode]:
    """``count`` episodes that depend on the seed only; the first n of a seed are the same for every ``count``."""
    rng = np.random.default_rng(seed)
    return (sample_episode(rng) for _ in range(count))


def evaluate(policy: Policy, episodes: int, seed: int, execution: Execution | None = None) -> Evaluation:
    """Run ``episodes`` seeded episodes; the same arguments give the same result."""
    arm = Arm()
    results = [run_episode(arm, policy, episode, execution or Execution()) for episode in episodes_of(episodes, seed)]
    durations = [result.duration_s for result in results if result.success]
    return Evaluation(
        episodes=episodes,
        successes=len(durations),
        mean_success_s=float(np.mean(durations)) if durations else float("nan"),
        temporal_consistency_rad=_quantiles([v for result in results for v in result.temporal_consistency]),
        reversal_rate=_quantiles([v for result in results for v in result.reversal_rate]),
        worst_step=_quantiles([result.worst_step for result in results]),
    )


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return (float("nan"),) * 3
    median, high, top = (float(v) for v in np.quantile(values, [0.5, 0.95, 1.0]))
    return median, high, top


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object a bundle."""
    parser = argparse.ArgumentParser(
        description="Success rate and chunk scores of bundles, in seeded simulated episodes."
    )
    parser.add_argument(
        "bundles", nargs="+", type=Path, metavar="BUNDLE", help="bundle folder of a policy for the simulated arm"
    )
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument(
        "--latency-ticks", type=int, default=2, help=f"simulated inference latency in periods of 1/{CONTROL_HZ} s"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the policy's inference")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when the policy's torch is imported, which is below
    execution = Execution(latency_ticks=options.latency_ticks)
    for bundle in options.bundles:
        policy = load_policy(bundle)
        if policy.spec.action_dim != len(JOINT_NAMES):
            parser.error(f"{bundle} is not for this arm")
        result = evaluate(policy, options.episodes, options.seed, execution)
        print(json.dumps({"bundle": bundle.name, "success_rate": result.success_rate, **asdict(result)}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
