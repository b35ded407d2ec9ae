# SPDX-License-Identifier: Apache-2.0
"""The verdict: old tasks must not have been forgotten, new ones must go better; what nothing could judge does not pass."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vla_checkpoint import Bundle
from vla_evidence.analysis import no_bar, tqdm_bar
from vla_learning.datasets.reading import DataSet
from vla_learning.gate.checks import Check, GateSettings, Part, compare_successes
from vla_learning.gate.recorded import compare_errors, episode_errors
from vla_learning.running import load_policy
from vla_learning.training.log import torch_threads
from vla_learning.workers import Job, Workers, cores
from vla_policy_node.policies.base import Policy

SIMULATED = "sim_arm", 50.0
"""Robot type, and rate of actions [Hz], that there is a simulator for."""


_AT_ONCE = 20
"""Episodes that a process plays before it answers."""
_WORTH_IT = 4
"""Answers of a process for which it is worth the seconds of its start."""


@dataclass(frozen=True)
class Held:
    """What the gate may ask about.

    Attributes:
        dataset: that was trained on.
        old, new: numbers of its episodes that were kept back.
        old_tasks, new_tasks: instructions of the replayed and of the corrected episodes; a task may be both.
    """

    dataset: DataSet
    old: Sequence[int]
    new: Sequence[int]
    old_tasks: Sequence[str]
    new_tasks: Sequence[str]


@dataclass(frozen=True)
class Verdict:
    """Of the gate."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check that could be judged passed, with one at least of old and of new tasks."""
        judged = [check for check in self.checks if check.passed is not None]
        return all(check.passed for check in judged) and {"old", "new"} <= {check.part for check in judged}

    @property
    def codes(self) -> tuple[str, ...]:
        """Why it did not pass, each code once."""
        if self.passed:
            return ()
        return tuple(dict.fromkeys(check.code for check in self.checks if check.code)) or ("GATE_NOT_JUDGED",)

    def lines(self) -> list[str]:
        """Return the verdict for people."""
        head = "the gate lets it pass" if self.passed else f"the gate stops it: {', '.join(self.codes)}"
        return [head, *(f"  {check}" for check in self.checks)]

    def as_json(self) -> dict[str, Any]:
        """Return the verdict for machines."""
        checks = [{**asdict(check), "code": check.code} for check in self.checks]
        return {"passed": self.passed, "codes": list(self.codes), "checks": checks}


def judge(base: Bundle, candidate: Bundle, held: Held, settings: GateSettings, *, quiet: bool = False) -> Verdict:
    """Compare a candidate with its base.

    Raises:
        CheckpointError, LearningError: a policy cannot be loaded here.
    """
    checks = []
    if (base.manifest.robot_type, base.manifest.action.rate_hz) == SIMULATED:
        checks += _simulated(base, candidate, held, settings, quiet)
    with torch_threads(1):  # so small a network takes several times as long on more
        checks += recorded_checks((load_policy(base), load_policy(candidate, base)), base, held, settings)
    return Verdict(tuple(checks))


def _simulated(base: Bundle, candidate: Bundle, held: Held, settings: GateSettings, quiet: bool) -> list[Check]:
    """Let both play the same episodes, a few at a time in processes beside each other."""
    from vla_learning.gate import simulator  # MuJoCo is not needed for other robots

    old, new = simulator.colours_in(held.old_tasks), simulator.colours_in(held.new_tasks)
    wanted: list[tuple[Part, tuple[str, ...], int, float]] = [
        ("old", old, settings.episodes_old, settings.margin_old),
        ("new", new, settings.episodes_new, settings.margin_new),
    ]
    wanted = [part for part in wanted if part[1]]
    jobs: list[Job] = [
        {"job": "play", "bundle": str(bundle.path), "base": str(base.path), "colours": colours, "count": count,
         "seed": settings.seed, "first": first, "last": first + _AT_ONCE}
        for _, colours, count, _ in wanted for bundle in (base, candidate) for first in range(0, count, _AT_ONCE)
    ]  # fmt: skip
    bar = no_bar if quiet or not sys.stderr.isatty() else tqdm_bar
    count = min(cores(), len(jobs) // _WORTH_IT)
    with torch_threads(1), bar("gate", len(jobs)) as tick:
        if count < 2:
            played = [simulator.play(**{k: v for k, v in job.items() if k != "job"}) for job in jobs]
        else:
            with Workers(simulator.__name__, count, tick) as workers:
                played = workers.do(jobs)
    found = iter(played)
    checks = []
    for part, colours, count, margin in wanted:
        before, after = ([s for _ in range(0, count, _AT_ONCE) for s in next(found)] for _ in range(2))
        name = f"{part} tasks in the simulator ({', '.join(colours)})"
        checks.append(compare_successes(name, part, before, after, margin, settings.alpha))
    return checks


def recorded_checks(policies: tuple[Policy, Policy], base: Bundle, held: Held, settings: GateSettings) -> list[Check]:
    """Compare base and candidate on the held-out episodes alone; no simulator is asked."""
    checks = []
    wanted: list[tuple[Part, Sequence[int], float]] = [
        ("old", held.old, settings.margin_recorded), ("new", held.new, 0.0)
    ]  # fmt: skip
    for part, numbers, margin in wanted:
        found = [episode_errors(policies, held.dataset, number, base) for number in numbers]
        before, after = ([errors[i] for errors in found if errors is not None] for i in (0, 1))
        checks.append(compare_errors(f"{part} recorded episodes", part, before, after, margin, settings.alpha))
    return checks
