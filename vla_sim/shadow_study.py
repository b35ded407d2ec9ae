# SPDX-License-Identifier: Apache-2.0
"""Whom does the shadow refuse? The shipped policy drives the simulated arm; candidates see what it saw, as in a shadow.

Candidates that should pass: the policy itself, with other noise in its weights, or trained again. Candidates that should not: with
actions of a wrong unit, sign, offset or order. Every window of ``--chunks`` chunks in a row is one shadow.

    python -m vla_sim.shadow_study --episodes 40 --trained build/retrained/1 build/retrained/2
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

from vla_policy_node.contract.model import Contract, load_contract
from vla_policy_node.control.limits import Limiter
from vla_policy_node.policies.base import FloatArray, Policy
from vla_policy_node.shadow.judge import ShadowJudge
from vla_policy_node.worker.api import PrepareError
from vla_sim.arm import CONTROL_HZ, Arm
from vla_sim.bundle import SHIPPED_BUNDLE, load_policy
from vla_sim.evaluate import ChunkPlayer, Execution, episodes_of, evaluate
from vla_sim.observation import observe
from vla_sim.recipes import Variant, derail, make, relative_noise
from vla_sim.task import ReachJudge, begin

Floats = npt.NDArray[np.float64]
CONTRACT = Path(__file__).parents[1] / "config" / "sim_arm.contract.yaml"
DEGREE = np.float32(180.0 / np.pi)


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
        self._policy.reset()

    def predict_chunk(self, observation: Any, instruction: str) -> FloatArray:
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


def shadows(contract: Contract, policy: Policy, asked: Sequence[Asked], answers: Sequence[Floats], chunks: int, limit: float) -> dict[str, Any]:
    """Return the share of refused windows by code, and the median divergence of those that passed."""
    limiter = Limiter([c.limits for c in contract.channels], [c.name for c in contract.channels])
    execute, codes, divergences = policy.spec.execute, [], []
    for first in range(0, len(asked) - chunks + 1, chunks):
        judge = ShadowJudge(contract, limiter, policy.spec, chunks=chunks, divergence_limit=limit)
        try:
            for i in range(first, first + chunks):
                now, before = asked[i], asked[i - 1] if i > first else None
                if before is not None and before.episode == now.episode:
                    overlap = min(len(before.chunk) - execute, execute)
                    judge.incumbent(before.chunk[execute : execute + overlap], now.chunk[:overlap])
                judge.candidate(answers[i], 0.0, now.chunk[:execute])
            divergences.append(judge.report(0.0).divergence)
            codes.append("")
        except PrepareError as e:
            codes.append(e.code)
    refused = {code: codes.count(code) / len(codes) for code in sorted(set(codes) - {""})}
    return {"shadows": len(codes), "refused": round(1 - codes.count("") / len(codes), 3), **refused,
            "divergence": round(float(np.median(divergences)), 2) if divergences else None}
