# SPDX-License-Identifier: Apache-2.0
"""What the fleet looked like over time: the server asked a few times a second, as a dashboard would, and a line a change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.markup import escape

from vla_fleet.client import Client, Json
from vla_fleet.errors import FleetError
from vla_sim.demo.processes import DemoError

_PERIOD_S = 0.4
_COLOURS = {"COMMITTED": "green", "ROLLED_BACK": "red", "REJECTED": "red", "FAILED": "red", "offline": "yellow"}


@dataclass(frozen=True)
class Moment:
    """From ``at_s`` on [s since 1970 UTC] a robot was like this."""

    at_s: float
    robot: str
    version: str
    """That acts; empty: none."""
    trial: bool
    drawn: str
    """The other version that each episode may be drawn for; empty: no episode is drawn."""
    online: bool


@dataclass(frozen=True)
class Mark:
    """Something that somebody did."""

    at_s: float
    text: str


class Watch:
    """Asks the server in a thread of its own. Use as a context manager.

    Args:
        client: of the server; while the server is away nothing is known.
        console: where changes are printed.
        give_up: says why there is no sense in waiting any longer; empty: there is.
    """

    def __init__(self, client: Client, console: Console, give_up: Callable[[], str]) -> None:
        self._client, self._console, self._give_up = client, console, give_up
        self.began_s = time.time()
        self.moments: list[Moment] = []
        self.marks: list[Mark] = []
        self.chapters: list[Mark] = []
        self.under_test: dict[str, str] = {}
        """Rollout or experiment → the version that it is about."""
        self._robots: dict[str, Json] = {}
        self._shown: dict[str, tuple[str, ...]] = {}
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join(10.0)

    def say(self, who: str, what: str, colour: str = "", *, mark: str = "") -> None:
        """Print a line; ``mark`` is its short form in the picture."""
        now_s = time.time()
        if mark:
            self.marks.append(Mark(now_s, mark))
        text = f"{now_s - self.began_s:6.1f} s  {who:8} {escape(' '.join(what.split()))}"
        self._console.print(f"[{colour}]{text}[/]" if colour else text, soft_wrap=True)

    def chapter(self, number: int, title: str, short: str) -> None:
        """Print a heading; ``short`` is its form in the picture."""
        self.chapters.append(Mark(time.time(), short))
        self._console.print(f"\n[bold]--- {number}. {escape(title)}[/]")

    def wait(self, accept: Callable[[dict[str, Json]], Any], what: str, timeout_s: float) -> Any:
        """Return the first true value of ``accept`` of the robots by name. Raises DemoError if it does not come."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not (found := accept(self._robots)):
                if reason := self._give_up():
                    raise DemoError(f"waited for {what}: {reason}")
                if time.monotonic() > deadline:
                    raise DemoError(f"waited {timeout_s:g} s in vain for {what}")
                self._changed.wait(_PERIOD_S)
            return found

    def _run(self) -> None:
        while not self._stopping.wait(_PERIOD_S):
            try:
                robots = {robot["name"]: robot for robot in self._client.robots()}
            except FleetError:  # killed, or not there yet
                continue
            with self._changed:
                self._robots = robots
                for robot in robots.values():
                    self._take(robot)
                self._changed.notify_all()

    def _take(self, robot: Json) -> None:
        name, status = robot["name"], robot["status"]
        version, trial = status.get("active_version", ""), bool(status.get("trial_version"))
        last = next((m for m in reversed(self.moments) if m.robot == name), None)
        drawn = self.under_test.get(status.get("experiment", ""), "")
        now = Moment(time.time(), name, version, trial, drawn, robot["online"])
        if last is None or replace(last, at_s=now.at_s) != now:
            self.moments.append(now)
        state = "offline" if not robot["online"] else status.get("state", "")
        shown = state, version, status.get("error_code", "")
        if self._shown.get(name) != shown:
            self._shown[name] = shown
            self.say(name, f"{version or '-':6} {state:12} {shown[2]}", _COLOURS.get(state, ""))
