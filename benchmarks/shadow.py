# SPDX-License-Identifier: Apache-2.0
"""Whom does the shadow refuse? The shipped policy drives the simulated arm; candidates see what it saw, as in a shadow.

Candidates of their own: the policy with noise in its weights, and trained again. Wrong ones: its actions in a wrong unit, sign,
order or place. Every ``--chunks`` chunks in a row are one shadow.

    python -m vla_sim.train --out build/retrained/seed_1 --seed 1
    python -m benchmarks.shadow --trained build/retrained/seed_1
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.contract.model import Contract, load_contract
from vla_policy_node.control.limits import Limiter
from vla_policy_node.policies.base import FloatArray, Policy
from vla_policy_node.shadow.judge import ShadowJudge
from vla_policy_node.worker.api import PrepareError
from vla_sim.arm import CONTROL_HZ, Arm
from vla_sim.bundle import SHIPPED_BUNDLE, load_policy
from vla_sim.evaluate import ChunkPlayer, Execution, episodes_of, evaluate
from vla_sim.recipes import Variant, derail, make, relative_noise
from vla_sim.task import ReachJudge, begin

Floats = npt.NDArray[np.float64]
CONTRACT = Path(__file__).parents[1] / "config" / "sim_arm.contract.yaml"


@dataclass(frozen=True, eq=False)
class Asked:
    """What the acting policy was asked, and answered."""

    episode: int
    observation: dict[str, Any]
    instruction: str
    chunk: Floats


class Recorder:
    """A policy that takes note of what it is asked."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self.spec = policy, policy.spec
        self.asked: list[Asked] = []
        self.episode = 0

    def reset(self) -> None:
        """Forget the episode."""
        self._policy.reset()

    def predict_chunk(self, observation: Any, instruction: str) -> FloatArray:
        """Pass the question on, and keep it with its answer."""
        chunk = self._policy.predict_chunk(observation, instruction)
        self.asked.append(Asked(self.episode, dict(observation), instruction, chunk.astype(np.float64)))
        return chunk


def drive(policy: Policy, episodes: int, seed: int) -> list[Asked]:
    """Let a policy work through seeded episodes, and return what it was asked."""
    arm, recorder = Arm(), Recorder(policy)
    for number, episode in enumerate(episodes_of(episodes, seed)):
        recorder.episode = number
        begin(arm, episode)
        recorder.reset()
        player, judge = ChunkPlayer(recorder, Execution()), ReachJudge(episode.colour)
        success: bool | None = None
        while success is None:
            arm.command(player.next_command(arm, episode.instruction).tolist())
            arm.step_control_period()
            success = judge.update(arm.state(), arm.blocks(), 1 / CONTROL_HZ)
    return recorder.asked


def shadows(
    contract: Contract, policy: Policy, asked: Sequence[Asked], answers: Sequence[Floats], chunks: int, limit: float
) -> dict[str, Any]:
    """Put a candidate with these answers through a shadow in every window; return how many were refused, by code."""
    limiter = Limiter([c.limits for c in contract.channels], [c.name for c in contract.channels])
    execute, codes, divergences = policy.spec.execute, [], []
    for first in range(0, len(asked) - chunks + 1, chunks):
        judge = ShadowJudge(contract, limiter, policy.spec, chunks=chunks, divergence_limit=limit)
        try:
            for i in range(first, first + chunks):
                now, before = asked[i], asked[i - 1]
                if i > first and before.episode == now.episode:
                    judge.incumbent(before.chunk[execute:], now.chunk[: len(before.chunk) - execute])
                judge.candidate(answers[i], 0.0, now.chunk[:execute])
            divergences.append(judge.report(0.0).divergence)
            codes.append("")
        except PrepareError as e:
            codes.append(e.code)
    passed = codes.count("")
    return {
        "shadows": len(codes),
        "passed": passed,
        **{code: codes.count(code) for code in ("SHADOW_DIVERGED", "SHADOW_LIMIT")},
        "divergence": round(float(np.median(divergences)), 2) if passed else None,
    }


def candidates(trained: Sequence[Path], folder: Path) -> dict[str, Policy]:
    """Policies of their own: the demo's recipes, and what was trained again."""
    made = {
        f"noise of {100 * sigma:g} % in every weight": relative_noise(sigma, 7) for sigma in (0.001, 0.01, 0.02, 0.05)
    }
    made["the demo's 1.2.0"] = derail
    policies = {}
    for number, (name, change) in enumerate(made.items()):
        policies[name] = load_policy(make(Variant(f"9.{number}.0", name, "accept", change), folder))
    for path in trained:
        policies[f"trained again: {path.name}"] = load_policy(path)
    return policies


WRONG: dict[str, Callable[[Floats], Floats]] = {
    "j1 of the other sign": lambda c: c * [-1, 1, 1],
    "j1 and j2 exchanged": lambda c: c[:, [1, 0, 2]],
    "degrees for radians": lambda c: c * (180 / np.pi),
    "radians taken for degrees": lambda c: c / (180 / np.pi),
    "all actions 20 % too large": lambda c: c * 1.2,
    "all actions 5 % too large": lambda c: c * 1.05,
    "j1 off by 0.2 rad": lambda c: c + np.array([0.2, 0, 0]),
    "j1 off by 0.1 rad": lambda c: c + np.array([0.1, 0, 0]),
    "j1 off by 0.05 rad": lambda c: c + np.array([0.05, 0, 0]),
    "j3 off by 0.05 rad": lambda c: c + np.array([0, 0, 0.05]),
    "half a second behind": lambda c: np.concatenate([np.repeat(c[:1], 25, axis=0), c[:-25]]),
}
"""What a unit, a sign, an order or statistics that are wrong make of the right actions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object a candidate."""
    parser = argparse.ArgumentParser(description="Whom does the shadow refuse? On seeded simulated episodes.")
    parser.add_argument("--episodes", type=int, default=100, help="in which the shipped policy acts")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--chunks", type=int, default=PolicyNodeConfig.shadow_chunks, help="of one shadow")
    parser.add_argument("--limit", type=float, default=PolicyNodeConfig.shadow_divergence_limit)
    parser.add_argument("--trained", type=Path, nargs="*", default=[], help="bundles that were trained again")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, which is below
    contract, acting = load_contract(CONTRACT), load_policy(SHIPPED_BUNDLE)
    asked = drive(acting, options.episodes, options.seed)

    def tell(name: str, answers: Sequence[Floats], **more: Any) -> None:
        found = shadows(contract, acting, asked, answers, options.chunks, options.limit)
        print(json.dumps({"candidate": name, **found, **more}), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for name, policy in candidates(options.trained, Path(folder)).items():
            answers = [policy.predict_chunk(a.observation, a.instruction).astype(np.float64) for a in asked]
            tell(name, answers, success_rate=evaluate(policy, options.episodes, options.seed).success_rate)
    for name, change in WRONG.items():
        tell(name, [change(a.chunk) for a in asked])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
