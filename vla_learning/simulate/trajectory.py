# SPDX-License-Identifier: Apache-2.0
"""One fleet over some weeks: it works, an operator corrects its failures, its policy is retrained, and again.

As a program it prints a line of JSON for each week: ``python -m vla_learning.simulate.trajectory SETTINGS``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from vla_learning.datasets.mix import mix
from vla_learning.gate.checks import GateSettings, compare_successes
from vla_learning.gate.simulator import outcomes
from vla_learning.simulate.newcomer import NEW_COLOUR, OLD_COLOURS, fleet_tasks, make_newcomer, task_for
from vla_learning.simulate.operator import Recording, examples_of, run
from vla_learning.training.tiny_vla import Settings as Training
from vla_learning.training.tiny_vla import fine_tune
from vla_policy_node.policies.base import Policy
from vla_sim.arm import Arm
from vla_sim.bundle import load_policy
from vla_sim.task import Episode

EVERY_TICKS = 5
"""Between pictures: of 50 a second ten are kept."""


LearnsFrom = Literal["replay", "new", "corrections"]


@dataclass(frozen=True)
class TrajectorySettings:
    """One fleet.

    Attributes:
        weeks: how long.
        learns_from: ``replay``: 70 % replay and 30 % new episodes, corrections ten times as often, as ``vla-fleet dataset build``
            mixes; ``new``: the week's episodes without replay, else the same; ``corrections``: the week's corrections alone.
        episodes: of the fleet in a week.
        share_new: share of tasks that ask for the new colour.
        earlier: episodes recorded before the new colour came.
        patience_s: after which the operator takes over [s].
        steps, batch, learning_rate: of a week's training.
        measured_old, measured_new: episodes of old tasks and of the new one on which each week's policy is measured.
        seed: of all of it.
    """

    weeks: int = 10
    learns_from: LearnsFrom = "replay"
    episodes: int = 25
    share_new: float = 0.2
    earlier: int = 80
    patience_s: float = 3.0
    steps: int = 120
    batch: int = 32
    learning_rate: float = 3e-4
    measured_old: int = 200
    measured_new: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Week:
    """How it stands at the end of a week; week 0 is the beginning."""

    week: int
    old: float
    """Success rate on the old tasks."""
    new: float
    """On the new one."""
    success: float
    """On the fleet's mix of both."""
    corrections: int
    """Episodes of the week in which the operator took over."""
    gate_stops: bool
    """Whether the gate would stop this week's candidate for what it has forgotten of the old tasks."""


def trajectory(settings: TrajectorySettings, folder: Path) -> Iterator[Week]:
    """Yield each week, the beginning first; ``folder`` takes the policies."""
    s, arm = settings, Arm()
    rng = np.random.default_rng([s.seed, 0])
    measured = np.random.default_rng([s.seed, 1])
    old = [task_for(OLD_COLOURS[i % len(OLD_COLOURS)], measured) for i in range(s.measured_old)]
    new = [task_for(NEW_COLOUR, measured) for _ in range(s.measured_new)]
    current = make_newcomer(folder / "0", s.seed)
    policy = load_policy(current)
    earlier = list(
        fleet_tasks(rng, s.earlier, 0.0)
    )  # drawn by all, so that all fleets of a seed get the same tasks later
    buffer = _work(arm, policy, earlier, s) if s.learns_from == "replay" else []
    found = outcomes(policy, old), outcomes(policy, new)
    yield _week(s, 0, found, found, 0)
    for number in range(1, s.weeks + 1):
        week = _work(arm, policy, fleet_tasks(rng, s.episodes, s.share_new), s)
        corrected = [recording for recording in week if recording.taken_over is not None]
        before = found
        if corrected:
            groups = [(1.0, corrected)] if s.learns_from == "corrections" else _groups(buffer, week)
            current = _train(current, groups, folder / str(number), s)
            policy = load_policy(current)
            found = outcomes(policy, old), outcomes(policy, new)
        if s.learns_from == "replay":
            buffer += week
        yield _week(s, number, before, found, len(corrected))


def _work(arm: Arm, policy: Policy, tasks: Iterable[Episode], s: TrajectorySettings) -> list[Recording]:
    """Return the week's recordings that show how a task is done."""
    done = [run(arm, policy, task, patience_s=s.patience_s, every=EVERY_TICKS) for task in tasks]
    return [recording for recording in done if recording.success or recording.taken_over is not None]


def _groups(buffer: Sequence[Recording], week: Sequence[Recording]) -> list[tuple[float, list[Recording]]]:
    """Return recordings with their shares of what is drawn: the product's mix, over steps that are learned from."""
    corrected = [recording for recording in week if recording.taken_over is not None]
    well = [recording for recording in week if recording.taken_over is None]
    steps = {id(group): sum(r.learnable[1] - r.learnable[0] for r in group) for group in (corrected, well)}
    corrections = steps[id(corrected)]
    replayed = sum(r.learnable[1] - r.learnable[0] for r in buffer)
    found = mix(replayed, corrections + steps[id(well)], corrections, replay_share=0.7, correction_weight=10.0)
    new, own = 1.0 - found.replay_share, found.corrections_of_new
    return [(found.replay_share, list(buffer)), (new * own, corrected), (new * (1.0 - own), well)]


def _train(base: Path, groups: list[tuple[float, list[Recording]]], out: Path, s: TrajectorySettings) -> Path:
    training = Training(
        steps=s.steps, batch=s.batch, learning_rate=s.learning_rate, warm_up_steps=10, checkpoint_every=s.steps
    )
    with tempfile.TemporaryDirectory() as work:
        fine_tune(base, examples_of(groups), out, Path(work), training, seed=s.seed, quiet=True)
    return out


def _week(
    s: TrajectorySettings,
    number: int,
    before: tuple[list[bool], list[bool]],
    found: tuple[list[bool], list[bool]],
    corrections: int,
) -> Week:
    old, new = (float(np.mean(outcome)) for outcome in found)
    gate = GateSettings()
    check = compare_successes("old", "old", before[0], found[0], gate.margin_old, gate.alpha)
    success = (1.0 - s.share_new) * old + s.share_new * new
    return Week(number, old, new, success, corrections, number > 0 and not check.passed)


def main(arguments: Sequence[str]) -> int:
    """Print each week of the fleet that the JSON object in the first argument describes."""
    torch.set_num_threads(1)
    settings = TrajectorySettings(**json.loads(arguments[0]))
    with tempfile.TemporaryDirectory(prefix="flywheel-") as folder:
        for week in trajectory(settings, Path(folder)):
            sys.stdout.write(json.dumps(asdict(week)) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
