# SPDX-License-Identifier: Apache-2.0
"""A robot without ROS: its manager and its policy are simulated, its line to the server is the real ``BridgeEngine``.

::

    robot = SimulatedRobot("arm_7", {"1.0.0": Behaviour(success=0.9), "1.1.0": Behaviour(success=0.6)})
    robot.connect("ws://127.0.0.1:8080", token, folder)
    robot.episodes(20)      # twenty outcomes of whatever version acts, at once
    robot.disconnect()      # offline; outcomes are kept
    robot.connect(…)

Nothing here sleeps or starts a thread: time is what ``now`` says, and an episode is played when somebody asks for it. So a test
steps a robot exactly, and the demonstration plays hours in seconds.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_evidence.assignment import arm, uniform
from vla_fleet import protocol
from vla_fleet_bridge.engine import BridgeConfig, BridgeEngine
from vla_fleet_bridge.port import Answer

_FETCH = ("CHECKING", "FETCHING", "VERIFYING", "INSTALLED")
_ON_DISK = ("CHECKING", "VERIFYING", "INSTALLED")
_ACTIVATE = ("PREPARING", "SWAPPING", "TRIAL")
_WAY_TO_END = {
    "COMMITTED": (*_FETCH, *_ACTIVATE),
    "REJECTED": ("CHECKING", "FETCHING", "VERIFYING"),
    "FAILED": ("CHECKING", "FETCHING"),
    "ROLLED_BACK": (*_FETCH, *_ACTIVATE, "ROLLING_BACK"),
}


@dataclass(frozen=True)
class Behaviour:
    """How a version does on this robot."""

    success: float = 0.9
    """Probability that an episode succeeds."""
    duration_s: float = 20.0
    """Mean length of an episode [s]; episodes vary by half of it to either side."""


class SimulatedRobot:
    """Manager, policy and task of one robot; it outlives its bridge, as the real ones do. Thread-safe.

    Args:
        name: the robot's; with ``seed`` it decides how each episode ends.
        behaviours: by version; a version that is not named behaves like ``Behaviour()``.
        seed: another one is another course of the same episodes.
        episode_arms: the robot can run another version in each episode, so it carries out an assignment.
        now: the robot's clock [s since 1970 UTC].
    """

    def __init__(
        self,
        name: str,
        behaviours: Mapping[str, Behaviour] | None = None,
        *,
        seed: int = 0,
        episode_arms: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.name, self._seed, self._episode_arms, self._now = name, seed, episode_arms, now
        self.behaviours = dict(behaviours or {})
        self.ends: dict[str, tuple[str, str]] = {}
        """Version → state and error code in which its updates end instead of COMMITTED; a state on the way: they stay there."""
        self.on_disk: dict[str, str] = {}
        """Version → digest of what is installed."""
        self.lineage: list[str] = []
        """Versions that were committed, oldest first; the last one is committed now."""
        self.blocked: set[str] = set()
        self.updates: dict[str, str] = {}
        """Update id → version, of each update that was taken up."""
        self.rollbacks: list[str] = []
        """The version that each rollback asked for."""
        self.played = 0
        """Episodes since the start."""
        self._trial = ""
        self._assignment: protocol.Assign | None = None
        self._kept: Path | None = None
        self._status = protocol.Status(time_s=now(), state="IDLE", episode_arms=episode_arms)
        self._unsent: list[protocol.Event | protocol.Outcome] = []
        self._mutex = threading.RLock()
        self._bridge: BridgeEngine | None = None

    # -- the line -----------------------------------------------------------------------------------------------------------

    def connect(self, server: str, token: str, folder: Path) -> BridgeEngine:
        """Go online: start a bridge, whose outbox is in ``folder``; what happened meanwhile is sent first."""
        config = BridgeConfig(server.replace("http", "ws", 1), token, folder / "outbox.db", software="simulated")
        with self._mutex:
            bridge = self._bridge = BridgeEngine(config, self, now=self._now)
            for message in self._unsent:
                self._tell(message)
            self._unsent.clear()
            self._kept = folder / "assignment.json"
            if self._assignment is None and self._kept.exists():
                self._assignment = protocol.Assign.model_validate_json(self._kept.read_bytes())
            self._tell_status(experiment=self._assignment.experiment if self._assignment is not None else "")
        bridge.start()
        return bridge

    def disconnect(self) -> None:
        """Go offline: stop the bridge. The robot goes on working, and keeps what it has to tell."""
        with self._mutex:
            bridge, self._bridge = self._bridge, None
        if bridge is not None:
            bridge.stop()  # without the mutex: its thread may be waiting for it

    @property
    def online(self) -> bool:
        """Whether the line to the server is up."""
        bridge = self._bridge
        return bridge is not None and bridge.line.connected

    @property
    def active(self) -> str:
        """The version that acts, or is on trial; empty: none."""
        return self._trial or (self.lineage[-1] if self.lineage else "")

    # -- episodes -----------------------------------------------------------------------------------------------------------

    def episodes(self, count: int = 1) -> list[protocol.Outcome]:
        """Play episodes with what acts, or with the arms of the assignment; return and report how they ended."""
        with self._mutex:
            outcomes = [self._episode() for _ in range(count)] if self.active else []
            for outcome in outcomes:
                self._tell(outcome)
        return outcomes

    def _episode(self) -> protocol.Outcome:
        self.played += 1
        episode_id, number = f"{self.name}-{self.played}", self.played
        version, drawn = self._arm(episode_id)
        behaviour = self.behaviours.get(version, Behaviour())
        luck = uniform(f"success {self._seed}", self.name, number)
        length = 0.5 + uniform(f"duration {self._seed}", self.name, number)
        return protocol.Outcome(
            time_s=self._now(), episode_id=episode_id, version=version, generation=len(self.updates), arm=drawn,
            success=luck < behaviour.success, duration_s=length * behaviour.duration_s,
        )  # fmt: skip

    def _arm(self, episode_id: str) -> tuple[str, str]:
        """Return an episode's version, and its arm (empty: no experiment)."""
        assignment = self._assignment
        if not self._episode_arms or assignment is None:
            return self.active, ""
        drawn = arm(assignment.experiment, self.name, episode_id, assignment.probability)
        return assignment.versions[drawn], "AB"[drawn]

    # -- what the server orders (RobotPort) ---------------------------------------------------------------------------------

    def offer(self, update_id: str, order: protocol.ModelUpdate) -> None:
        """Carry an update out at once; an id that is known changes nothing."""
        with self._mutex:
            if update_id in self.updates:
                return
            self.updates[update_id] = order.version
            path, code = self._path(order)
            if "INSTALLED" in path:
                self.on_disk[order.version] = order.manifest_sha256
            for before, after in itertools.pairwise(("IDLE", *path)):
                self._enter(after, order.version)
                last = after == path[-1]
                self._step(update_id, order.version, before, after, code if last or after == "ROLLING_BACK" else "")

    def _path(self, order: protocol.ModelUpdate) -> tuple[tuple[str, ...], str]:
        """Return the states that an update goes through, and the code with which it ends."""
        end, code = self.ends.get(order.version, ("COMMITTED", ""))
        if order.version in self.blocked:
            return ("CHECKING", "REJECTED"), "VERSION_BLOCKED"
        if end in _WAY_TO_END:
            way = (*_WAY_TO_END[end], end)
        else:  # a state on the way: it is stuck there
            whole = _WAY_TO_END["COMMITTED"]
            way = whole[: whole.index(end) + 1]
        if "INSTALLED" not in way:
            return way, code
        known = self.on_disk.get(order.version) == order.manifest_sha256
        way = (*(_ON_DISK if known else _FETCH), *way[len(_FETCH) :])
        if not order.activate:
            return way[: way.index("INSTALLED") + 1], ""
        if known and self.lineage[-1:] == [order.version]:
            return ("CHECKING", "VERIFYING", "COMMITTED"), ""
        return way, code

    def _enter(self, state: str, version: str) -> None:
        """Let a state do to the robot what it does to a real one."""
        if state == "TRIAL":
            self._trial = version
        elif state == "COMMITTED":
            self._trial = ""
            self.lineage = [*(old for old in self.lineage if old != version), version]
        elif state == "ROLLED_BACK":
            self._trial = ""
            self.blocked.add(version)

    def rollback(self, version: str, reason: str) -> Answer:
        """Go back to a version on disk."""
        with self._mutex:
            self.rollbacks.append(version)
            if version not in self.on_disk:
                code = "MODEL_NOT_FOUND" if version else "NO_PREVIOUS"
                return Answer(False, code, f"{version or 'a version to go back to'} is not on disk")
            if version in self.blocked:
                return Answer(False, "VERSION_BLOCKED", f"{version} was rolled back")
            if self.active != version:
                self._step("", version, self._status.state, "ROLLING_BACK")
                self._trial = ""
                older = self.lineage[: self.lineage.index(version)] if version in self.lineage else self.lineage[:-1]
                self.lineage = [*older, version]
                self._step("", version, "ROLLING_BACK", "ROLLED_BACK")
            return Answer(True, "", reason, version)

    def pin(self, version: str, *, unpin: bool) -> Answer:
        """Keep a version on disk, or no longer."""
        if version not in self.on_disk:
            return Answer(False, "MODEL_NOT_FOUND", f"{version} is not on disk")
        return Answer(True, "", f"{version} is {'no longer ' if unpin else ''}pinned", version)

    def assign(self, order: protocol.Assign, robot: str) -> Answer:
        """Take an assignment on, and keep it."""
        with self._mutex:
            if not order.versions and self._assignment is not None and self._assignment.experiment != order.experiment:
                return Answer(True, "", f"takes part in {self._assignment.experiment} by now")
            missing = [version for version in order.versions if version not in self.on_disk]
            if self._episode_arms and missing:
                return Answer(False, "MODEL_NOT_FOUND", f"{missing[0]} is not on disk")
            self._assignment = order if order.versions else None
            if self._kept is not None and order.versions:
                self._kept.write_text(order.model_dump_json())
            elif self._kept is not None:
                self._kept.unlink(missing_ok=True)
            self._tell_status(experiment=order.experiment if order.versions else "")
            return Answer(True, "", "each episode is drawn" if self._episode_arms else "kept")

    # -- what the robot says ------------------------------------------------------------------------------------------------

    def _step(self, update_id: str, version: str, before: str, after: str, code: str = "") -> None:
        event = protocol.Event(
            time_s=self._now(), update_id=update_id, from_state=before, to_state=after, version=version, error_code=code
        )
        self._tell(event)
        self._tell_status(update_id=update_id, state=after, error_code=code)

    def _tell_status(self, **fields: Any) -> None:
        committed = self.lineage[-1] if self.lineage else ""
        known = {
            "time_s": self._now(),
            "committed_version": committed,
            "committed_digest": self.on_disk.get(committed, ""),
            "previous_version": self.lineage[-2] if len(self.lineage) > 1 else "",
            "trial_version": self._trial,
            "active_version": self.active,
            "active_digest": self.on_disk.get(self.active, ""),
            "versions": sorted(self.on_disk),
            "blocked": sorted(self.blocked),
        }
        self._status = self._status.model_copy(update={**known, **fields})
        if self._bridge is not None:
            self._bridge.on_status(self._status)

    def _tell(self, message: protocol.Event | protocol.Outcome) -> None:
        if self._bridge is None:
            self._unsent.append(message)
        elif isinstance(message, protocol.Event):
            self._bridge.on_event(message)
        else:
            self._bridge.on_outcome(message)
