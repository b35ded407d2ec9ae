# SPDX-License-Identifier: Apache-2.0
"""Which order does each robot get next? Pure: what is wanted, what was ordered and what robots said go in, orders come out.

Nothing is remembered between two calls, so a server that was killed anywhere finds the same answer again. Forward, a robot gets
one order at a time, when it is online, within windows and limits. Back, it gets all of them at once, whatever else holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from vla_fleet import protocol


class Standing(str, Enum):
    """How a robot stands on its way."""

    OUTSIDE = "OUTSIDE"
    """It is not its turn, or there is nothing to undo."""
    WAITING = "WAITING"
    """It is to get an order."""
    ORDERED = "ORDERED"
    INSTALLED = "INSTALLED"
    """It has committed the version, or draws it for its episodes."""
    BACK = "BACK"
    """It runs what it came from."""
    FAILED = "FAILED"
    SILENT = "SILENT"
    """It has said nothing for longer than the deadline; if it comes, it goes on."""


@dataclass(frozen=True)
class Given:
    """An order that the rollout or experiment gave to a robot, and how it stands."""

    order: protocol.Order
    created_s: float
    heard_s: float
    """When the robot said something of it, by the server's clock."""
    robot_s: float = 0.0
    """The same by the robot's clock."""
    state: str = "WAITING"
    robot_state: str = ""
    error_code: str = ""

    @property
    def open(self) -> bool:
        """Whether the robot may still carry it out."""
        return self.state not in ("DONE", "REFUSED", "FAILED")


@dataclass(frozen=True)
class Robot:
    """What is known of a robot."""

    name: str
    origin: str = ""
    online: bool = True
    managed: bool = True
    """Its manager has been heard, so what it has committed is known."""
    blocked: frozenset[str] = frozenset()
    """Versions that it has rolled back by itself and takes no more."""
    busy: bool = False
    """It has an order of somebody else."""
    committed: str = ""
    digest: str = ""
    """Of what it has committed."""
    adapted: str = ""
    """Of the full version below that, if it is an adapter that the robot has trained itself; empty: it is none."""
    trying: bool = False
    """Something else acts than what it has committed."""
    experiment: str = ""
    status_s: float = 0.0
    """When the robot said what it has committed and for which experiment it draws, by its own clock."""
    given: tuple[Given, ...] = ()

    def last(self, order: protocol.Order, since_s: float = 0.0) -> Given | None:
        """Return the newest order like this one that was given since then."""
        found = (given for given in reversed(self.given) if given.created_s >= since_s and _same(given.order, order))
        return next(found, None)

    def runs(self, update: protocol.ModelUpdate) -> bool:
        """Whether an update would change nothing. A version number alone does not tell: another model may have the same."""
        return self.digest == update.manifest_sha256 and not self.trying

    def has(self, update: protocol.ModelUpdate) -> bool:
        """Whether what it has committed is an update's version, or an adapter that the robot has trained itself on it."""
        return self.committed == update.version or self.adapted == update.manifest_sha256


@dataclass(frozen=True)
class Look:
    """How a robot stands, why, and what it is to get next."""

    standing: Standing
    detail: str = ""
    """In words, or the code with which the robot failed."""
    orders: tuple[protocol.Order, ...] = ()
    robot_s: float = 0.0
    """Of an installed one: since when, by its own clock."""

    @property
    def settled(self) -> bool:
        """Whether the stage need not wait for it."""
        return self.standing not in (Standing.WAITING, Standing.ORDERED)


@dataclass(frozen=True)
class Course:
    """Where robots are to go: the version, and how its episodes are drawn.

    Attributes:
        experiment: salts the draws.
        update: the order that installs and activates the version.
        reason: of going back.
    """

    experiment: str
    update: protocol.ModelUpdate
    reason: str = ""
    homes: Mapping[str, protocol.ModelUpdate] = field(default_factory=dict)
    """By version: installs it on a robot that cannot go back to it, for example because it is not on its disk any more."""

    def draw(self, robot: Robot, probability: float) -> tuple[protocol.Order, ...]:
        """Return what lets a robot draw the version of each episode."""
        hold = self.update.model_copy(update={"activate": False})
        versions = [robot.origin, self.update.version]
        return hold, protocol.Assign(experiment=self.experiment, versions=versions, probability=probability)

    def run(self, robot: Robot) -> tuple[protocol.Order, ...]:
        """Return what lets a robot run nothing else."""
        return (*self._end_of_draws(robot), self.update)

    def back(self, robot: Robot, since_s: float) -> tuple[protocol.Order, ...]:
        """Return what takes a robot back to where it came from; ``since_s``: when the way back began.

        Nothing, if it never got there or has committed a third version since: somebody else decided that.
        """
        update = robot.last(self.update)
        rollback = protocol.Rollback(version=robot.origin, reason=self.reason)
        begun = robot.last(rollback, since_s)
        may_run = update is not None and (update.open or update.state == "DONE")
        if begun is None and (not may_run or self._moved_on(robot, update)):
            return self._end_of_draws(robot)
        home = self.homes.get(robot.origin)
        if begun is not None and begun.state in ("REFUSED", "FAILED") and home is not None:
            return (*self._end_of_draws(robot), home)
        return (*self._end_of_draws(robot), rollback)

    def _moved_on(self, robot: Robot, update: Given | None) -> bool:
        done = update is not None and update.state == "DONE" and robot.status_s > update.robot_s
        elsewhere = robot.committed not in ("", robot.origin) and not robot.has(self.update)
        return done and bool(robot.origin) and elsewhere

    def stay(self, robot: Robot) -> tuple[protocol.Order, ...]:
        """Return what ends the draws and changes nothing else."""
        return self._end_of_draws(robot)

    def _end_of_draws(self, robot: Robot) -> tuple[protocol.Order, ...]:
        drew = any(isinstance(given.order, protocol.Assign) and given.order.versions for given in robot.given)
        return (protocol.Assign(experiment=self.experiment),) if drew else ()


def forward(robot: Robot, wanted: Sequence[protocol.Order], since_s: float, now_s: float, deadline_s: float) -> Look:
    """Say how a robot stands on its way to the version.

    Args:
        robot: it.
        wanted: orders in their sequence; empty: it keeps what it has.
        since_s: when it was to get there.
        now_s, deadline_s: a robot of which nothing was heard for a deadline is silent.
    """
    if not wanted:
        return Look(Standing.OUTSIDE)
    given = None
    for order in wanted:
        given = robot.last(order)
        if given is None:
            return _not_ordered(robot, order, since_s, now_s, deadline_s)
        if given.open:
            return _ordered(given, now_s, deadline_s)
        if given.state != "DONE":
            return Look(Standing.FAILED, given.error_code or given.robot_state or given.state)
    assert given is not None
    if lost := lost_by(robot, wanted[-1], given.robot_s):
        return Look(Standing.FAILED, lost)
    return Look(Standing.INSTALLED, given.robot_state, robot_s=given.robot_s)


def backward(robot: Robot, wanted: Sequence[protocol.Order], since_s: float, now_s: float, deadline_s: float) -> Look:
    """Say how a robot stands on its way back; orders are given at once, to robots that are away as well.

    What was ordered before ``since_s``, when the way back began, does not count.
    """
    if not wanted:
        return Look(Standing.OUTSIDE)
    found = [(order, robot.last(order, since_s)) for order in wanted]
    missing = tuple(order for order, given in found if given is None)
    if missing:
        return Look(Standing.WAITING, "", missing)
    for _, given in found:
        assert given is not None
        if given.open:
            return _ordered(given, now_s, deadline_s)
        if given.state != "DONE":
            return Look(Standing.FAILED, given.error_code or given.state)
    return Look(Standing.BACK)


def lost_by(robot: Robot, order: protocol.Order, since_s: float) -> str:
    """Return why a robot has no longer what it was led to, for example because a person gave it another order; empty: it has.

    ``since_s``: when it got there, by its own clock; what it said before does not tell.
    """
    if isinstance(order, protocol.ModelUpdate) and order.version in robot.blocked:
        return "VERSION_BLOCKED"
    if robot.status_s <= since_s:
        return ""
    if isinstance(order, protocol.ModelUpdate) and not robot.has(order):
        return f"runs {robot.committed or 'nothing'}"
    if isinstance(order, protocol.Assign) and robot.experiment != order.experiment:
        return f"draws for {robot.experiment or 'nothing'}"
    return ""


def _not_ordered(robot: Robot, order: protocol.Order, since_s: float, now_s: float, deadline_s: float) -> Look:
    if isinstance(order, protocol.ModelUpdate) and order.version in robot.blocked:
        return Look(Standing.FAILED, "VERSION_BLOCKED")
    if not (robot.online and robot.managed):
        silent = now_s - since_s >= deadline_s
        detail = "its manager is silent" if robot.online else "offline"
        return Look(Standing.SILENT if silent else Standing.WAITING, detail)
    if robot.busy:
        return Look(Standing.WAITING, "carries out another order")
    return Look(Standing.WAITING, "", (order,))


def _ordered(given: Given, now_s: float, deadline_s: float) -> Look:
    silent = now_s - max(given.created_s, given.heard_s) >= deadline_s
    return Look(Standing.SILENT if silent else Standing.ORDERED, given.robot_state or given.state)


@dataclass(frozen=True)
class Limits:
    """How fast orders may be given; None: no limit."""

    max_concurrent: int | None = None
    per_minute: int | None = None

    def allow(self, looks: Sequence[tuple[Robot, Look]], now_s: float) -> list[tuple[str, protocol.Order]]:
        """Return which of the orders that robots are to get next may be given now, in the sequence of the robots."""
        room = len(looks)
        if self.max_concurrent is not None:
            room = self.max_concurrent - sum(look.standing is Standing.ORDERED for _, look in looks)
        if self.per_minute is not None:
            minute = sum(given.created_s > now_s - 60.0 for robot, _ in looks for given in robot.given)
            room = min(room, self.per_minute - minute)
        wanted = [(robot.name, order) for robot, look in looks for order in look.orders]
        return wanted[: max(0, room)]


def arrived(looks: Iterable[tuple[Robot, Look]]) -> bool:
    """Whether a stage can be judged: somebody has the version, and whoever is online is not on its way any more.

    Robots that are away are waited for, until the deadline, only while nobody has it.
    """
    found = list(looks)
    somebody = any(look.standing is Standing.INSTALLED for _, look in found)
    return all(look.settled or (somebody and not robot.online) for robot, look in found)


def _same(one: protocol.Order, other: protocol.Order) -> bool:
    """Whether two orders ask for the same; where the files lie does not matter."""
    if isinstance(one, protocol.ModelUpdate) and isinstance(other, protocol.ModelUpdate):
        return (one.manifest_sha256, one.activate) == (other.manifest_sha256, other.activate)
    if isinstance(one, protocol.Rollback) and isinstance(other, protocol.Rollback):
        return one.version == other.version
    return one == other
