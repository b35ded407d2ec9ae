# SPDX-License-Identifier: Apache-2.0
"""One rollout as the demonstration follows it: what it says as it happens, and whether its log can be replayed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from vla_evidence.errors import EvidenceError
from vla_evidence.log.replay import replay_file
from vla_fleet.client import Json
from vla_fleet.errors import FleetError
from vla_sim.demo.processes import DemoError

if TYPE_CHECKING:
    from vla_sim.fleet.play.stage import Stage

ENDS = {"DONE", "ROLLED_BACK", "ABORTED"}
_PERIOD_S = 0.4
_COLOURS = {"rollout.rolling_back": "bold red", "rollout.rolled_back": "red", "rollout.done": "bold green"}


class Followed:
    """A rollout that has begun."""

    def __init__(self, stage: Stage, info: Json) -> None:
        self._stage, self.id, self._shown = stage, str(info["id"]), 0
        stage.watch.under_test[self.id] = str(info["version"])
        self.stages_seen: list[str] = []
        """Names of the stages that it has come to."""
        self._info = info

    def wait(self, states: set[str], timeout_s: float) -> Json:
        """Wait until it is in one of these states; return it. Raises DemoError if it ends otherwise or does not come there."""
        return self._until(lambda info: info["state"] in states, f"{', '.join(sorted(states))}", timeout_s)

    def wait_stage(self, name: str, timeout_s: float) -> Json:
        """Wait until it has come to a stage."""
        return self._until(lambda info: info["stages"][info["stage"]]["name"] == name, f"stage {name}", timeout_s)

    def approve(self, reason: str) -> None:
        """Let the next stage begin, as a person may."""
        self._stage.client.steer_rollout(self.id, "approve", reason)

    def check(self, state: str, version: str, robots: Iterable[str]) -> None:
        """Check how it ended, what these robots have committed, and that its evidence leads to the same again."""
        info, committed = self._look(), self._stage.committed()
        self._stage.check(info["state"] == state, f"rollout {self.id} is {info['state']}, not {state}")
        for robot in robots:
            self._stage.check(committed[robot] == version, f"{robot} has committed {committed[robot]}, not {version}")
        self._check_log()
        rollouts = self._stage.facts.setdefault("rollouts", [])
        rollouts.append(
            {key: info[key] for key in ("id", "version", "target", "state", "outcomes", "verdict", "history")}
        )

    def _check_log(self) -> None:
        path = self._stage.folder / f"{self.id}.jsonl"
        path.write_bytes(self._stage.client.rollout_log(self.id))
        try:
            found = replay_file(path)
            if found.verdicts:
                self._stage.watch.say("evidence", str(found), "dim")
        except EvidenceError as e:
            self._stage.check(False, f"the log of rollout {self.id} cannot be replayed: {e}")

    def _until(self, accept: Callable[[Json], bool], what: str, timeout_s: float) -> Json:
        deadline = time.monotonic() + timeout_s
        while True:
            info = self._look()
            if accept(info):
                return info
            if info["state"] in ENDS:
                raise DemoError(f"rollout {self.id} ended as {info['state']} on its way to {what}: {info['verdict']}")
            if time.monotonic() > deadline:
                raise DemoError(
                    f"rollout {self.id} is {info['state']} after {timeout_s:g} s, not {what}: {info['verdict']}"
                )
            time.sleep(_PERIOD_S)

    def _look(self) -> Json:
        """Ask how it stands, and print what is new in its history. The server may be away for a moment."""
        try:
            info = self._info = self._stage.client.rollout(self.id)
        except FleetError as e:
            if e.code != "SERVER_UNREACHABLE":
                raise
            return self._info
        for line in info["history"][self._shown :]:
            what = f"{line['action'].removeprefix('rollout.')}: {line['why']}".removesuffix(": ")
            mark = "taken back on evidence" if line["action"] == "rollout.rolling_back" else ""
            self._stage.watch.say("rollout", what, _COLOURS.get(line["action"], "magenta"), mark=mark)
        self._shown = len(info["history"])
        name = info["stages"][info["stage"]]["name"]
        if name not in self.stages_seen:
            self.stages_seen.append(name)
            version = info["version"]
            self._stage.watch.say("rollout", f"{version} comes to stage {name}", "bold magenta")
        return info
