# SPDX-License-Identifier: Apache-2.0
"""Two generations an episode: while ota_manager names an experiment, each episode's version is drawn, and acts from its start.

Nothing is loaded for it. Both versions are in memory or nothing is drawn: the episode then runs with what acts, is of no arm, and
the status says why. B acts on a lease that ota_manager's status renews, as in a trial (``generations/lease.py``).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from vla_policy_node.generations.generations import Generations
from vla_policy_node.generations.residents import Resident
from vla_policy_node.generations.swapping import SwapError
from vla_ros.drawing import B, arm

LOG = logging.getLogger("vla_policy_node")


@dataclass(frozen=True)
class Assignment:
    """An experiment in which this robot takes part; see ``msg/ModelStatus.msg``."""

    experiment: str
    robot: str
    digests: tuple[str, str]
    """Of A, the control, and B."""
    probability: float
    """Of B."""


@dataclass(frozen=True)
class Draw:
    """What was drawn for an episode."""

    arm: str = ""
    """``A`` or ``B``; empty: nothing was drawn, or what was drawn could not act."""
    swapped: bool = False
    """Another generation acts than before."""


class Draws:
    """Thread-safe.

    Args:
        generations: hold both versions.
        lease_s: ota_manager's word counts for so long [s].
        timeout_s: longest wait for the first chunk of what was drawn [s].
    """

    def __init__(self, generations: Generations, lease_s: float, timeout_s: float) -> None:
        self._generations, self._lease_s, self._timeout_s = generations, lease_s, timeout_s
        self._lock = threading.Lock()
        self._assignment: Assignment | None = None
        self._heard_s = -math.inf
        self._named: tuple[str, tuple[str, str]] | None = None  # the last experiment that was named
        self._fault: tuple[str, str] = ("", "")
        self._undrawn: tuple[str, str] = ("", "")

    def on_manager_status(self, assignment: Assignment | None) -> None:
        """Take what ota_manager's status says; ``None``: nothing is to be drawn."""
        with self._lock:
            if assignment is not None and _what(assignment) != self._named:  # a pause does not make B good again
                self._fault = self._undrawn = ("", "")
                self._named = _what(assignment)
            self._assignment, self._heard_s = assignment, time.monotonic()

    def stop(self, code: str, why: str) -> None:
        """The version under test must not act again: nothing is drawn until ota_manager names another experiment."""
        with self._lock:
            self._fault = code, why
        LOG.error("nothing is drawn any more: %s: %s", code, why)

    @property
    def experiment(self) -> str:
        """The experiment that ota_manager names; empty: none, or ota_manager is silent."""
        assignment = self._heard()
        return assignment.experiment if assignment is not None else ""

    @property
    def error(self) -> tuple[str, str]:
        """Code and text: why nothing is drawn any more, else why the last episode belongs to no arm; empty: it was drawn.

        Empty too while ota_manager names no experiment.
        """
        with self._lock:
            if self._assignment is None:
                return "", ""
            return self._fault if self._fault[0] else self._undrawn

    def _heard(self) -> Assignment | None:
        with self._lock:
            fresh = time.monotonic() - self._heard_s <= self._lease_s
            return self._assignment if fresh else None

    def draw(self, episode_id: str, begin: Callable[[], None]) -> Draw:
        """Draw an episode's version and let it act from the episode's start, which ``begin`` makes, once. Blocks.

        Raises ControlError, and what ``begin`` raises.
        """
        assignment, begun = self._heard(), False

        def begin_once() -> None:
            nonlocal begun
            if not begun:
                begun = True
                begin()

        drawn, undrawn = Draw(), ("", "")
        try:
            if assignment is not None and not self._fault[0]:
                drawn = self._run(assignment, episode_id, begin_once)
            else:
                self._leave(begin_once)
        except SwapError as e:
            undrawn = e.code, e.message
            LOG.warning("episode %s is not drawn: %s: %s", episode_id, e.code, e)
        with self._lock:
            self._undrawn = undrawn
        begin_once()
        return drawn

    def _run(self, assignment: Assignment, episode_id: str, begin: Callable[[], None]) -> Draw:
        a, b = (self._generations.resident(digest) for digest in assignment.digests)
        drawn = arm(assignment.experiment, assignment.robot, episode_id, assignment.probability)
        chosen, other = (b, a) if drawn == B else (a, b)
        return Draw("AB"[drawn], self._let_act(chosen, other, leased=drawn == B, begin=begin))

    def _leave(self, begin: Callable[[], None]) -> None:
        """Let no episode begin with the version under test after the experiment."""
        lease = self._generations.lease
        if lease is not None and lease.drawn and lease.fallback is not None:
            a, b = (self._generations.resident(digest) for digest in (lease.fallback.digest, lease.digest))
            self._let_act(a, b, leased=False, begin=begin)

    def _let_act(self, chosen: Resident, other: Resident, *, leased: bool, begin: Callable[[], None]) -> bool:
        lease_s = self._lease_s if leased else 0.0
        return self._generations.let_act_in_episode(
            chosen, instead_of=other, lease_s=lease_s, timeout_s=self._timeout_s, begin=begin
        )


def _what(assignment: Assignment) -> tuple[str, tuple[str, str]]:
    return assignment.experiment, assignment.digests
