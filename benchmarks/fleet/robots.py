# SPDX-License-Identifier: Apache-2.0
"""Robots of the load client: they speak ``vla_fleet.protocol`` as ``fleet_bridge`` does, and keep what is not stored yet.

An order is carried out at once. The robot says of it what a bridge says of a rollback: ACCEPTED, RUNNING, that another version
acts, DONE, and its new status; the first four are kept until the server has stored them.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.fleet.line import Line
from vla_fleet import protocol
from vla_fleet.protocol import AckState
from vla_fleet_bridge.engine import retry_after_s

_AT_ONCE = 200
"""Handshakes that are under way at the same moment."""
_SLICE_S = 0.05
_PLAYED_AT_ONCE = 10


class Fleet:
    """All robots of this process, and what happened to them."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self.robots: list[Robot] = []
        self.online = 0
        self.heartbeat_s = 10.0
        self.stored: asyncio.Queue[tuple[str, float]] = asyncio.Queue()
        """``(type of order, when [s since 1970])``, one for each order whose end the server has stored."""
        self.received: Counter[str] = Counter()
        """Orders that were carried out, by type."""
        self.again = 0
        """Orders that came once more."""
        self.outcomes = self.outcomes_stored = self.kept = 0
        self._handshakes = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin a task, and keep it until it has ended."""
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def add(self, tokens: dict[str, str]) -> None:
        """Let more robots connect."""
        for name, token in tokens.items():
            robot = Robot(self, len(self.robots), name, token)
            self.robots.append(robot)
            self.start(robot.connect)

    async def handshake(self, robot: Robot) -> None:
        """Open a robot's line; wait while many others open theirs."""
        async with self._handshakes:
            robot.waits = asyncio.get_running_loop().create_future()
            url = self.urls[robot.server % len(self.urls)]
            host, _, port = url.partition("://")[2].partition(":")
            line = robot.line = Line(f"ws://{host}:{port}/v1/robots/connect", robot.token, robot)
            try:
                await asyncio.get_running_loop().create_connection(lambda: line, host, int(port))
                await robot.waits
            except OSError:
                robot.lost()

    async def beat(self) -> None:
        """Let each robot send its status and a ping once a heartbeat, evenly spread."""
        position = 0.0
        while True:
            begun_s = time.monotonic()
            await asyncio.sleep(_SLICE_S)
            count = len(self.robots)
            upto = position + count * min(1.0, (time.monotonic() - begun_s) / self.heartbeat_s)
            for index in range(int(position), int(upto)):
                self.robots[index % count].beat()
            position = upto % count if count else 0.0

    async def all_online(self) -> None:
        """Wait until every robot is connected."""
        while self.online < len(self.robots):
            self.changed.clear()
            await self.changed.wait()

    async def play(self, rate: float, seconds: float) -> None:
        """Let episodes end, ``rate`` a second over all robots, one robot after the other, also of those that are away."""
        begun_s = time.monotonic()
        for done, robot in enumerate(itertools.cycle(self.robots)):
            if done % _PLAYED_AT_ONCE == 0:  # answers are read in any case
                ahead_s = done / rate - (time.monotonic() - begun_s)
                await asyncio.sleep(max(0.0, ahead_s))
            if time.monotonic() - begun_s > seconds:
                return
            robot.episode()


class Robot:
    """One robot: its line, its outbox in memory, the orders that it has carried out."""

    __slots__ = ("_acting", "_ends", "_failures", "_fleet", "_outbox", "_outbox_id", "_seq", "_unstored_outcomes",
                 "done", "events", "line", "name", "server", "stands", "token", "waits")  # fmt: skip

    def __init__(self, fleet: Fleet, server: int, name: str, token: str) -> None:
        self._fleet, self.server, self.name, self.token = fleet, server, name, token
        self.line: Line | None = None
        self.waits: asyncio.Future[None] | None = None
        self.stands = False
        self._failures = self._seq = self.events = 0
        self._outbox: dict[int, bytes] = {}
        self._outbox_id = f"o-{secrets.token_hex(8)}"
        self._ends: dict[int, str] = {}
        self._unstored_outcomes: set[int] = set()
        self.done: dict[str, str] = {}
        """Command id → type of order, of each order that was carried out."""
        self._acting = ["", ""]
        """The version before, and the one that acts."""

    @property
    def unsent(self) -> int:
        """Messages that the server has not stored."""
        return len(self._outbox)

    async def connect(self) -> None:
        """Open the line; a line that ends is opened again, at another server if there is one."""
        if self._failures:
            await asyncio.sleep(retry_after_s(self._failures))
        await self._fleet.handshake(self)

    def opened(self) -> None:
        """See Listener."""
        hello = protocol.Hello(protocols=[protocol.PROTOCOL], outbox_id=self._outbox_id, software="load")
        self._send(hello.model_dump_json())

    def lost(self) -> None:
        """See Listener: the robot connects again, at the next server."""
        fleet = self._fleet
        fleet.online -= self.stands
        self.stands, self.line = False, None
        if self.waits is not None and not self.waits.done():
            self.waits.set_result(None)
        self._failures, self.server = self._failures + 1, self.server + 1
        fleet.start(self.connect)

    def heard(self, text: bytes) -> None:
        """See Listener."""
        message = protocol.FROM_SERVER.validate_json(text)
        if isinstance(message, protocol.Welcome):
            self._welcomed(message)
        elif isinstance(message, protocol.Received):
            self._stored(message.seq)
        elif message.id in self.done:
            self._fleet.again += 1
        else:
            self._carry_out(message)

    def _welcomed(self, welcome: protocol.Welcome) -> None:
        fleet = self._fleet
        fleet.heartbeat_s, fleet.online = welcome.heartbeat_s, fleet.online + 1
        self.stands, self._failures = True, 0
        if self.waits is not None and not self.waits.done():
            self.waits.set_result(None)
        self._say_status()
        for message in list(self._outbox.values()):
            self._send(message)
        fleet.changed.set()

    def _stored(self, seq: int) -> None:
        for stored in [number for number in self._outbox if number <= seq]:
            del self._outbox[stored]
            self._fleet.outcomes_stored += stored in self._unstored_outcomes
            self._unstored_outcomes.discard(stored)
            if order := self._ends.pop(stored, ""):
                self._fleet.stored.put_nowait((order, time.time()))

    def _carry_out(self, command: protocol.Command) -> None:
        order, now_s = command.order, time.time()
        self.done[command.id] = order.type
        self._fleet.received[order.type] += 1
        if isinstance(order, protocol.ModelUpdate):
            self._acting = [self._acting[1], order.version]
        elif isinstance(order, protocol.Rollback):
            self._acting = [self._acting[1], self._acting[0]]
        version = self._acting[1]
        for state in (AckState.ACCEPTED, AckState.RUNNING):
            self._keep(protocol.Ack(time_s=now_s, command_id=command.id, state=state, version=version))
        event = protocol.Event(
            time_s=now_s, update_id=command.id, from_state="", to_state=protocol.ACTIVE, version=version
        )
        self._keep(event)
        self.events += 1
        ended = self._keep(protocol.Ack(time_s=now_s, command_id=command.id, state=AckState.DONE, version=version))
        self._ends[ended] = order.type
        self._say_status()

    def episode(self) -> None:
        """Let an episode end."""
        outcome = protocol.Outcome(
            time_s=time.time(), episode_id=f"{self.name}-{self._seq}", version=self._acting[1], success=True, duration_s=20.0
        )  # fmt: skip
        self._unstored_outcomes.add(self._keep(outcome))
        self._fleet.outcomes += 1

    def beat(self) -> None:
        """Send a status and a ping, if there is a line."""
        if self.stands and self.line is not None:
            self._say_status()
            self.line.ping()

    def drop(self) -> None:
        """Lose the line."""
        if self.line is not None:
            self.line.drop()

    def _keep(self, message: protocol.Kept) -> int:
        self._seq += 1
        self._fleet.kept += 1
        self._outbox[self._seq] = message.model_copy(update={"seq": self._seq}).model_dump_json().encode()
        if self.stands:
            self._send(self._outbox[self._seq])
        return self._seq

    def _say_status(self) -> None:
        before, acting = self._acting
        status = protocol.Status(
            time_s=time.time(), state="COMMITTED" if acting else "IDLE", name="reach_block", committed_version=acting,
            previous_version=before, active_version=acting, versions=sorted({before, acting} - {""}), unsent=len(self._outbox),
        )  # fmt: skip
        self._send(status.model_dump_json())

    def _send(self, text: str | bytes) -> None:
        if self.line is not None and self.line.is_open:
            self.line.send(text if isinstance(text, bytes) else text.encode())


def some(robots: list[Robot], share: float) -> list[Robot]:
    """Return that share of the robots, chosen at random."""
    return random.sample(robots, round(len(robots) * share))
