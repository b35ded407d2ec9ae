# SPDX-License-Identifier: Apache-2.0
"""What a chapter works with: server, robots, what is seen of them, and what has to be true."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from vla_fleet.client import Client, Json
from vla_fleet.errors import FleetError
from vla_sim.bundle import NAME
from vla_sim.demo.processes import DemoError, Processes
from vla_sim.fleet.play.rollouts import Followed
from vla_sim.fleet.play.watch import Watch
from vla_sim.fleet.server import FleetServer

_FOLLOW_S = 0.3


@dataclass(kw_only=True)
class Stage:
    """A fleet with its server, and what the report tells of it."""

    server: FleetServer
    client: Client
    processes: Processes
    watch: Watch
    folder: Path
    problems: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """What the report tells of the chapters."""

    def check(self, holds: bool, what: str) -> None:
        """Note a problem if something does not hold."""
        if not holds:
            self.problems.append(what)
            self.watch.say("demo", f"NOT AS EXPECTED: {what}", "bold red")

    def publish(self, bundle: Path, alias: str = "") -> str:
        """Publish a version as a training script does; return its digest."""
        published = self.client.publish(bundle, alias=alias)
        name, version, digest = published["name"], published["version"], str(published["digest"])
        self.watch.say("trainer", f"publishes {name} {version} ({digest[:12]}…)", "cyan")
        return digest

    def begin_rollout(self, version: str, target: str, stages: list[Json], **settings: Any) -> Followed:
        """Begin a rollout; ``settings`` are others of ``Client.create_rollout``."""
        return self.follow_rollout(self.client.create_rollout(f"{NAME}@{version}", target, stages=stages, **settings))

    def follow_rollout(self, info: Json) -> Followed:
        """Follow a rollout that has begun."""
        self.watch.say(
            "operator", f"begins rollout {info['id']} of {info['version']} to {info['target']}", "bold magenta"
        )
        return Followed(self, info)

    def follow(self, commands: Sequence[Json], timeout_s: float) -> float:
        """Wait until robots have done what they were ordered to; return how long the last one took [s]."""
        begun_s, ids = time.monotonic(), [command["id"] for command in commands]
        *_, standing = self.client.follow(ids, timeout_s, _FOLLOW_S)
        for command in standing:
            done = command["state"] == "DONE"
            self.check(
                done, f"{command['robot']}: {command['state']} {command['error_code']} {command['message']}".strip()
            )
        return time.monotonic() - begun_s

    def wait_committed(self, version: str, robots: Iterable[str], timeout_s: float) -> None:
        """Wait until robots have committed a version, as the server sees it."""
        names = set(robots)

        def committed(seen: dict[str, Json]) -> bool:
            return all(seen[name]["status"].get("committed_version") == version for name in names)

        self.watch.wait(committed, f"{version} on {', '.join(sorted(names))}", timeout_s)

    def committed(self) -> dict[str, str]:
        """Return what each robot has committed."""
        return {robot["name"]: robot["status"].get("committed_version", "") for robot in self.client.robots()}


S = TypeVar("S", bound=Stage)


@dataclass(frozen=True)
class Chapter(Generic[S]):
    """A part of the story. ``play`` does it and checks what came of it."""

    title: str
    short: str
    """For the picture."""
    play: Callable[[S], None]


def play(chapters: Sequence[Chapter[S]], stage: S) -> None:
    """Play the chapters one after the other; one that cannot be gone on with ends the story."""
    for number, chapter in enumerate(chapters, start=1):
        stage.watch.chapter(number, chapter.title, chapter.short)
        begun_s, problems = time.monotonic(), len(stage.problems)
        try:
            chapter.play(stage)
        except (DemoError, FleetError) as e:
            stage.check(False, f"chapter {number}: {e}")
            if number < len(chapters):
                stage.check(False, f"the last {len(chapters) - number} chapters were not played")
            return
        if len(stage.problems) == problems:
            stage.watch.say("demo", f"as expected, in {time.monotonic() - begun_s:.1f} s", "dim")


def tell_end(console: Console, out: Path, picture: str, report: str, problems: Sequence[str]) -> int:
    """Print where everything is, and what did not go as it should; return the exit status."""
    console.print(f"\nPicture: {out / picture}; report: {out / report}", soft_wrap=True)
    if problems:
        console.print("The demonstration did NOT go as expected:", style="bold red")
        for problem in problems:
            console.print(f"  - {problem}", style="red", markup=False, soft_wrap=True)
        console.print(f"Logs: {out / 'logs'}/*.log and {out / 'server.log'}", soft_wrap=True)
    return 1 if problems else 0
