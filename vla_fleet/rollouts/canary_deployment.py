# SPDX-License-Identifier: Apache-2.0
"""A canary deployment in one small class, for notebooks and lessons; ``vla_fleet.rollouts.rollouts`` is that of a real fleet."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from vla_evidence.canary.config import ROBOT_STAGES
from vla_evidence.canary.simple import MARGIN, improvement, parity


class CanaryDeployment:
    """Counts robots and compares means: parity to widen, improvement before every robot gets the version.

    A stage has at least one robot, whatever its share, and after :meth:`rollback` none has the version. How often this rule is
    wrong in a fleet is simulated by ``vla-fleet rollout create --judge simple``.

    Args:
        fleet_size: robots.
    """

    def __init__(self, fleet_size: int) -> None:
        self.fleet_size = fleet_size
        self.stages = ROBOT_STAGES
        self.current_stage = 0
        self.rolled_back = False
        self.metrics: dict[str, list[float]] = defaultdict(list)

    def current_rollout(self) -> dict[str, Any]:
        """Return the stage, and how many robots run which model in it."""
        stage = self.stages[self.current_stage]
        new = 0 if self.rolled_back else stage.robots(self.fleet_size)
        name = "rolled_back" if self.rolled_back else stage.name
        return {"stage": name, "robots_on_new_model": new, "robots_on_old_model": self.fleet_size - new}

    def record_metrics(self, model_version: str, success_rate: float) -> None:
        """Note a success rate of a version."""
        self.metrics[model_version].append(success_rate)

    def should_advance(self, new_version: str, old_version: str, min_samples: int = 50) -> tuple[bool, str]:
        """Return whether the next stage may begin, and why."""
        new, old = self.metrics[new_version], self.metrics[old_version]
        if min(len(new), len(old)) < min_samples:
            return False, f"Insufficient data: {len(new)} and {len(old)} of {min_samples}"
        new_mean, old_mean = sum(new) / len(new), sum(old) / len(old)
        to_all = not self.stages[min(self.current_stage + 1, len(self.stages) - 1)].compares
        if to_all:
            good, asked = improvement(new_mean, old_mean), ">"
        else:
            good, asked = parity(new_mean, old_mean), f">= {MARGIN:.0%} below"
        return good, f"New {new_mean:.1%}, old {old_mean:.1%}: {'' if good else 'not '}{asked}"

    def advance(self) -> dict[str, Any]:
        """Begin the next stage; the last one has every robot."""
        if not self.rolled_back and self.current_stage < len(self.stages) - 1:
            self.current_stage += 1
        return self.current_rollout()

    def rollback(self) -> dict[str, Any]:
        """Take the version from every robot."""
        self.rolled_back, self.current_stage = True, 0
        return self.current_rollout()
