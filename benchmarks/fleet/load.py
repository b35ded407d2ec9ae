# SPDX-License-Identifier: Apache-2.0
"""The load client: robots, plain sockets and polling clients in one process, asked by ``benchmarks.fleet.server.LoadHost``.

``enrol``, ``connect``, ``orders``, ``play``, ``drop``, ``settle`` and ``counts`` are about robots; ``echo`` and ``heard`` about
sockets that send back what they receive; ``poll`` about clients that ask over HTTP. Each answers when it is done.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from benchmarks.fleet import requests
from benchmarks.fleet.line import Line
from benchmarks.fleet.robots import Fleet, some
from benchmarks.processes import say

_LIMIT_S = 300.0


class Load:
    """What the driver asks for."""

    def __init__(self) -> None:
        self._fleet = Fleet([])
        self._tokens: dict[str, str] = {}
        self._sockets: list[_Echo] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def enrol(self, server: str, keys: list[str], names: list[str]) -> dict[str, Any]:
        """Enrol robots; answer when all have their tokens."""
        begun_s = time.time()
        self._tokens = await requests.enrol(server, keys, names)
        return {"seconds": time.time() - begun_s}

    async def connect(self, servers: list[str]) -> dict[str, Any]:
        """Connect the robots that were enrolled, at the servers in turn; answer when all stand."""
        self._fleet.urls = servers
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._fleet.beat()))
        begun_s = time.time()
        self._fleet.add(self._tokens)
        await self._fleet.all_online()
        gc.freeze()  # thousands of robots that stay need not be looked through again and again
        return {"seconds": time.time() - begun_s}

    async def orders(self, type: str, count: int) -> dict[str, Any]:
        """Answer when the ends of so many orders are stored: when the half and when all of them were [s since 1970]."""
        ends: list[float] = []
        while len(ends) < count:
            order, at_s = await self._fleet.stored.get()
            if order == type:
                ends.append(at_s)
        return {"half_s": ends[len(ends) // 2], "last_s": ends[-1]}

    async def play(self, rate: float, seconds: float) -> dict[str, Any]:
        """Let episodes end; answer how many were stored meanwhile and how many were not."""
        fleet, before = self._fleet, self._fleet.outcomes_stored
        begun_s = time.monotonic()
        await fleet.play(rate, seconds)
        passed_s = time.monotonic() - begun_s
        return {"per_s": (fleet.outcomes_stored - before) / passed_s, "behind": fleet.outcomes - fleet.outcomes_stored}

    async def drop(self, share: float) -> dict[str, Any]:
        """Cut a share of the lines off."""
        chosen = some(self._fleet.robots, share)
        for robot in chosen:
            robot.drop()
        return {"dropped": len(chosen)}

    async def settle(self) -> dict[str, Any]:
        """Answer when all are connected and have nothing left to tell."""
        begun_s = time.time()
        while self._fleet.online < len(self._fleet.robots) or any(robot.unsent for robot in self._fleet.robots):
            await asyncio.sleep(0.05)
        return {"seconds": time.time() - begun_s, "unsent": sum(robot.unsent for robot in self._fleet.robots)}

    async def counts(self) -> dict[str, Any]:
        """Answer what the robots did: outcomes, events, and orders by type; and orders that came again."""
        fleet = self._fleet
        events = sum(robot.events for robot in fleet.robots)
        done = [name for robot in fleet.robots for name in robot.done]
        return {
            "outcomes": fleet.outcomes, "events": events, "orders": len(done), "distinct_orders": len(set(done)),
            "carried_out": sum(fleet.received.values()), "came_again": fleet.again,
        }  # fmt: skip

    async def echo(self, server: str, count: int) -> dict[str, Any]:
        """Open more plain sockets; answer when all stand."""
        begun_s = time.time()
        host, _, port = server.partition("://")[2].partition(":")
        at_once = asyncio.Semaphore(200)

        async def one() -> None:
            async with at_once:
                socket = _Echo(f"ws://{host}:{port}/echo")
                self._sockets.append(socket)
                await asyncio.get_running_loop().create_connection(lambda: socket.line, host, int(port))
                await socket.stands

        await asyncio.gather(*(one() for _ in range(count)))
        gc.freeze()
        return {"seconds": time.time() - begun_s}

    async def heard(self) -> dict[str, Any]:
        """Answer when each socket has heard something, and when the last one had [s since 1970]."""
        await asyncio.gather(*(socket.word for socket in self._sockets))
        return {"last_s": max(socket.word.result() for socket in self._sockets)}

    async def poll(self, url: str, clients: int, seconds: float) -> dict[str, Any]:
        """Ask over HTTP from so many connections, with robots' tokens if there are any, each again when it was answered."""
        tokens = list(self._tokens.values())[:clients] or [""] * clients
        return {"per_s": await requests.poll(url, tokens, seconds)}


class _Echo:
    """A socket that sends back the first message that it hears."""

    def __init__(self, url: str) -> None:
        self.line = Line(url, "", self)
        loop = asyncio.get_running_loop()
        self.stands: asyncio.Future[None] = loop.create_future()
        self.word: asyncio.Future[float] = loop.create_future()

    def opened(self) -> None:
        self.stands.set_result(None)

    def heard(self, text: bytes) -> None:
        if not self.word.done():
            self.word.set_result(time.time())
            self.line.send(text)

    def lost(self) -> None:
        for future in (self.stands, self.word):
            if not future.done():
                future.set_exception(ConnectionError("the echo server has closed a socket"))


async def _lines() -> AsyncIterator[dict[str, Any]]:
    lines = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        yield json.loads(line)


async def _serve() -> None:
    load, under_way = Load(), set()

    async def answer(do: str, number: int, settings: dict[str, Any]) -> None:
        async with asyncio.timeout(_LIMIT_S):
            say(number=number, **await getattr(load, do)(**settings))

    async with asyncio.TaskGroup() as tasks:
        async for request in _lines():
            do, number = request.pop("do"), request.pop("number")
            under_way.add(tasks.create_task(answer(do, number, request)))
        raise SystemExit(0)


def main() -> None:
    """Serve the driver until its end of the pipe is closed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_serve())


if __name__ == "__main__":
    main()
