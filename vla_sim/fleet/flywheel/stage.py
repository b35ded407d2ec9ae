# SPDX-License-Identifier: Apache-2.0
"""The demonstration's fleet, and the artefacts that it leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_fleet.client import Json
from vla_sim.bundle import NAME
from vla_sim.demo.processes import DemoError
from vla_sim.fleet.flywheel.ros.tasks import Tasks
from vla_sim.fleet.flywheel.tool import vla_fleet
from vla_sim.fleet.play.rollouts import Followed
from vla_sim.fleet.play.stage import Stage

ROBOTS = ("arm_1", "arm_2", "arm_3")
_MOST_EPISODES = 100_000


@dataclass(kw_only=True)
class FlywheelStage(Stage):
    """Everything of the demonstration. Times are of the machine's clock [s since 1970 UTC]."""

    tasks: Tasks
    base: Path
    """The bundle that the robots begin with."""
    times: dict[str, float] = field(default_factory=dict)
    """What happened when, for the report and the picture."""
    rollout: Followed | None = None

    @property
    def data_set(self) -> Path:
        """Folder of the data set."""
        return self.folder / "data_set"

    @property
    def run(self) -> Json:
        """The record of the training run; empty: there is none."""
        found = sorted((self.folder / "runs").glob("*/run.json"))
        return json.loads(found[0].read_text(encoding="utf-8")) if found else {}

    @property
    def learned(self) -> str:
        """The version that was published; raises DemoError if there is none."""
        try:
            return str(self.run["published"]["version"])
        except KeyError as e:
            raise DemoError("vla-fleet train has published nothing") from e

    def vla_fleet(self, *arguments: Any, timeout_s: float) -> None:
        """Run a command of ``vla-fleet`` and print what it says."""
        self.watch.say("operator", f"$ vla-fleet {' '.join(self._short(a) for a in arguments)}", "cyan")
        for line in vla_fleet(self.server.url, self.server.key, *arguments, timeout_s=timeout_s).splitlines():
            if line.strip():
                self.watch.say("", line, "dim")

    def _short(self, argument: Any) -> str:
        return str(argument.relative_to(self.folder)) if isinstance(argument, Path) else str(argument)

    def episodes(self) -> list[Json]:
        """Return the episodes of the policy that the server has, the oldest first."""
        return self.client.episodes(_MOST_EPISODES, policy=NAME)[::-1]
