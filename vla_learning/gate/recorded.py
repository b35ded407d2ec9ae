# SPDX-License-Identifier: Apache-2.0
"""Candidate and base on recorded episodes that training did not see: how far their chunks are from the recorded actions.

The error of a chunk is the mean absolute difference from the actions that followed, in standard deviations of the base's
statistics. An episode is one observation: the mean over moments spread evenly over it. A success shows what the policy of its
time did, so it asks whether the candidate still does that; a correction shows what the operator did, so it asks whether the
candidate learned it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vla_checkpoint import Bundle
from vla_learning.datasets.reading import DataSet
from vla_learning.gate.checks import Check, Part
from vla_learning.training.recordings import examples_of, observations_of
from vla_policy_node.policies.base import Policy

LEAST_EPISODES = 5
"""Below so many nothing is judged."""
_MOMENTS = 12  # of an episode


def episode_errors(policies: Sequence[Policy], dataset: DataSet, number: int, base: Bundle) -> tuple[float, ...] | None:
    """Return each policy's error on one episode [standard deviations of an action]; None: nothing in it was demonstrated."""
    features = base.config.input_features
    state = next(name for name, feature in features.items() if feature.type == "STATE")
    camera = next((name for name, feature in features.items() if feature.type == "VISUAL"), state)
    examples = examples_of(dataset, [number], state, camera)
    if not len(examples):
        return None
    index = np.unique(np.linspace(0, len(examples) - 1, _MOMENTS).round().astype(np.intp))
    seen = observations_of(dataset, examples.at[index], features)
    std = np.asarray(base.stats["action"]["std"], np.float64).reshape(-1)
    found = []
    for policy in policies:
        targets, real = examples.chunks(index, policy.spec.horizon)
        errors = []
        for i, own in enumerate(index):
            policy.reset()
            chunk = policy.predict_chunk({name: a[i] for name, a in seen.items()}, examples.instructions[own])
            errors.append((np.abs(chunk - targets[i])[real[i]] / std).mean())
        found.append(float(np.mean(errors)))
    return tuple(found)


def compare_errors(
    name: str, part: Part, base: Sequence[float], candidate: Sequence[float], margin: float, alpha: float
) -> Check:
    """Compare two policies by their errors on the same episodes, by the one-sided t bound of the mean difference."""
    count = len(base)
    if count < LEAST_EPISODES:
        return Check(name, part, None, f"{count} held-out episodes, at least {LEAST_EPISODES} are needed")
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    difference = np.subtract(candidate, base)
    half = float(stdtrit(count - 1, 1.0 - alpha)) * float(difference.std(ddof=1)) / math.sqrt(count)
    bound = float(difference.mean()) + half
    passed = bound <= margin
    text = f"error {np.mean(base):.3f} before, {np.mean(candidate):.3f} after, over {count} episodes; "
    text += f"a rise above {max(bound, 0.0):.3f} is excluded" + (f" (asked: above {margin:.3f})" if margin else "")
    figures = {"episodes": count, "base": float(np.mean(base)), "candidate": float(np.mean(candidate))}
    return Check(name, part, passed, text, {**figures, "bound": bound, "margin": margin})
