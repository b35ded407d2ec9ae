# SPDX-License-Identifier: Apache-2.0
"""The chapters: what is done to the robot, and what must have come of it. Every wait ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vla_sim.demo.expectations import (
    SHORT_PATH,
    Check,
    Evidence,
    committed,
    ends_with,
    recovered,
    refused,
    resumed,
    undisturbed,
    undone_by_a_person,
    undone_by_itself,
)
from vla_sim.demo.journal import (
    EpisodeOutcome,
    Journal,
    Killed,
    ModelEvent,
    ModelStatus,
    PolicyStatus,
    RollbackReply,
    SwapReport,
)
from vla_sim.demo.processes import DemoError, Processes
from vla_sim.demo.report import END_STATES
from vla_sim.demo.server import CheckpointServer

MODEL = "reach_block"
UPDATE_LIMIT_S = 90.0
"""Longest time for an update from its offer to its end."""
_CHANGE_LIMIT_S = 30.0
_RESPAWN_S = 1.0
_EPISODES_BEFORE = 2  # of a version before its worker is killed
_CUT_AT = 0.4  # share of the largest blob that is on the disk when the manager is killed


class Driver(Protocol):
    """What the story asks of the driver's node."""

    def offer(self, name: str, version: str, manifest_url: str, digest: str) -> str:
        """Offer a version; return the update's id."""

    def roll_back(self) -> RollbackReply:
        """Ask for a rollback with an empty request."""

    def worker_pid(self) -> int:
        """Return the process id of the acting worker."""


@dataclass(frozen=True)
class Published:
    """A version on the server. ``blobs``: path → size [bytes] of what only this version has."""

    manifest_path: str
    digest: str
    blobs: Mapping[str, int]


@dataclass
class Stage:
    """Everything a chapter works with. ``start_manager`` starts it (again) on the same store."""

    driver: Driver
    journal: Journal
    server: CheckpointServer
    processes: Processes
    versions: Mapping[str, Published]
    start_manager: Callable[[], None]

    @property
    def evidence(self) -> Evidence:
        """What the checks look at."""
        return Evidence(self.journal, self.server, {v: p.blobs for v, p in self.versions.items()})

    def offer(self, version: str) -> str:
        """Offer a version that is on the server."""
        published = self.versions[version]
        return self.driver.offer(MODEL, version, self.server.base_url + published.manifest_path, published.digest)

    def wait_end(self, update_id: str, version: str) -> None:
        """Wait until an update has ended, and until the reports of its swaps are there."""
        end = self.journal.wait(
            ModelEvent,
            lambda e: e.update_id == update_id and e.to_state in END_STATES,
            f"the end of the update to {version}",
            UPDATE_LIMIT_S,
        )
        if end.to_state == "ROLLED_BACK":
            self.wait_report(version, since_s=0.0, leaving=True)
        elif end.to_state == "COMMITTED":
            self.wait_report(version, since_s=0.0)
            self.journal.wait(
                ModelStatus, lambda s: s.committed_version == version, f"{version} in the status", _CHANGE_LIMIT_S
            )

    def wait_success(self, version: str, what: str, since_s: float) -> float:
        """Wait until an episode of a version succeeds after ``since_s``; return when it did, a moment later."""
        outcome = self.journal.wait(
            EpisodeOutcome, lambda o: o.success and o.version == version, what, _CHANGE_LIMIT_S, since_s=since_s
        )
        return outcome.at_s + 1e-3

    def wait_report(self, version: str, *, since_s: float, leaving: bool = False) -> None:
        """Wait for the SwapReport of a swap to a version, or away from it."""
        self.journal.wait(
            SwapReport,
            lambda s: (s.from_version if leaving else s.to_version) == version,
            f"a SwapReport of {version}",
            _CHANGE_LIMIT_S,
            since_s=since_s,
        )


@dataclass(frozen=True)
class Chapter:
    """A part of the story: what is done, and what must have come of it."""

    title: str
    act: Callable[[Stage], None]
    expect: Check


def update_to(version: str) -> Callable[[Stage], None]:
    """Offer a version and wait until its update has ended, however it does."""

    def act(stage: Stage) -> None:
        stage.wait_end(stage.offer(version), version)

    return act


def update_and_undo(version: str, back_to: str) -> Callable[[Stage], None]:
    """Update, then let an operator go back."""

    def act(stage: Stage) -> None:
        stage.wait_end(stage.offer(version), version)
        reply = stage.driver.roll_back()
        if reply.success:
            stage.wait_report(back_to, since_s=reply.at_s)
            stage.journal.wait(
                ModelStatus,
                lambda s: s.committed_version == back_to,
                f"{back_to} in the status",
                _CHANGE_LIMIT_S,
                since_s=reply.at_s,
            )

    return act


def update_with_kill(version: str) -> Callable[[Stage], None]:
    """Kill the manager in the middle of a download and start it again.

    The server holds its next bytes back until the manager has been killed: so nothing is in flight then, and its counter says to
    the byte whether anything is fetched twice.
    """

    def act(stage: Stage) -> None:
        path, size = max(stage.versions[version].blobs.items(), key=lambda item: item[1])
        stage.server.pause_after(path, int(size * _CUT_AT))
        begun_s = time.time()
        update_id = stage.offer(version)
        if not stage.server.wait_paused(_CHANGE_LIMIT_S):
            raise DemoError(f"the manager did not fetch {path} within {_CHANGE_LIMIT_S:g} s")
        sent = stage.server.served_bytes("/blobs/", since_s=begun_s)
        stage.journal.wait(
            ModelStatus,
            lambda s: s.update_id == update_id and s.bytes_done == sent,
            f"the manager to have the {sent} bytes that were sent",
            _CHANGE_LIMIT_S / 2,
        )
        stage.journal.add(Killed(time.time(), "ota_manager"))
        stage.processes.kill("ota_manager")
        stage.server.resume()
        time.sleep(_RESPAWN_S)
        stage.start_manager()
        stage.wait_end(update_id, version)

    return act


def kill_worker(version: str) -> Callable[[Stage], None]:
    """Let the arm work for a while, kill the process that computes its actions, and wait until an episode has succeeded again."""

    def act(stage: Stage) -> None:
        begun_s = time.time()
        for _ in range(_EPISODES_BEFORE):
            begun_s = stage.wait_success(version, "an episode that succeeds", begun_s)
        pid = stage.driver.worker_pid()
        if b"vla_policy_node.worker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            raise DemoError(f"process {pid} is no worker of policy_node")
        killed_s = time.time()
        stage.journal.add(Killed(killed_s, "worker"))
        os.kill(pid, signal.SIGKILL)
        held = stage.journal.wait(
            PolicyStatus, lambda s: s.holding, "a hold after the loss of the worker", _CHANGE_LIMIT_S, since_s=killed_s
        )
        back = stage.journal.wait(
            PolicyStatus, lambda s: s.running, "the end of the hold", _CHANGE_LIMIT_S, since_s=held.at_s
        )
        stage.wait_report(version, since_s=killed_s)
        stage.wait_success(version, "an episode that succeeds after the recovery", back.at_s)

    return act


def nothing(stage: Stage) -> None:
    """Do nothing: the whole story is looked at."""


CHAPTERS = (
    Chapter("A robot without a policy gets its first one: 1.0.0", update_to("1.0.0"), committed("1.0.0", "")),
    Chapter("An update in motion: 1.1.0", update_to("1.1.0"), committed("1.1.0", "1.0.0")),
    Chapter("A corrupted version is offered: 1.1.1", update_to("1.1.1"), refused("1.1.1", "1.1.0")),
    Chapter(
        "A version that behaves badly: 1.2.0; the robot goes back by itself",
        update_to("1.2.0"),
        undone_by_itself("1.2.0", "1.1.0"),
    ),
    Chapter(
        "A good version that an operator does not want: 1.3.0",
        update_and_undo("1.3.0", "1.1.0"),
        lambda evidence: [*committed("1.3.0", "1.1.0")(evidence), *undone_by_a_person("1.3.0", "1.1.0")(evidence)],
    ),
    Chapter(
        "The manager is killed in the middle of a download: 1.4.0",
        update_with_kill("1.4.0"),
        lambda evidence: [*committed("1.4.0", "1.1.0", SHORT_PATH)(evidence), *resumed("1.4.0")(evidence)],
    ),
    Chapter("The process that computes the actions is killed", kill_worker("1.4.0"), recovered("1.4.0")),
    Chapter(
        "Looking back",
        nothing,
        lambda evidence: [*undisturbed(evidence), *ends_with("1.4.0")(evidence)],
    ),
)
VERSIONS = ("1.0.0", "1.1.0", "1.1.1", "1.2.0", "1.3.0", "1.4.0")
"""What the chapters offer; the first is the base of the others."""
