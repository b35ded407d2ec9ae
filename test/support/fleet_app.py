# SPDX-License-Identifier: Apache-2.0
"""The fleet server on a real socket in this process, on a clock that the test moves: a day takes milliseconds."""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Generic, Self, TypeVar
from unittest import mock

import structlog
import uvicorn
from sqlalchemy import event

from support.waits import TIMEOUT_S, wait_for
from vla_fleet.client import Client
from vla_fleet.clock import Clock, SystemClock
from vla_fleet.experiments import manager
from vla_fleet.rollouts import rollouts
from vla_fleet.server.app import create_app
from vla_fleet.server.limits import Buckets
from vla_fleet.server.line_protocol import LineProtocol
from vla_fleet.server.rooms import ADMIN_KEY, Rooms, Settings, embedded
from vla_fleet.storage.database import Database

_T = TypeVar("_T")
_C = TypeVar("_C", bound=Clock)


class ShiftedClock(SystemClock):
    """The machine's clock, ``ahead_s`` seconds ahead; it can also stand still."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.stands_at_s: float | None = None

    def now(self) -> float:
        """Return the shifted time."""
        return (super().now() if self.stands_at_s is None else self.stands_at_s) + self.ahead_s


class ManualClock:
    """A clock that stands still until :meth:`advance` moves it."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self._now_s = now_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Return the simulated time [s since 1970 UTC]."""
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        """Return once :meth:`advance` has moved the clock by ``seconds``."""
        waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + seconds, next(self._order), waker))
        await waker

    async def advance(self, seconds: float) -> None:
        """Move the clock on, waking every sleeper at its own time."""
        end = self._now_s + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            self._now_s, _, waker = heapq.heappop(self._sleepers)
            if not waker.done():
                waker.set_result(None)
            await asyncio.sleep(0)  # what was woken may go to sleep again before ``end``
        self._now_s = end


def _no_wait_for_the_disk(connection: Any, _: Any) -> None:
    """This server ends with the test's process: nothing is read from its database after a loss of power."""
    connection.execute("PRAGMA synchronous=OFF")


@functools.cache
def _empty_database() -> bytes:
    """A database with every table: ten migrations, made once in a process and not by each of its servers."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(embedded(Path(folder)), SystemClock())

        async def make() -> None:
            await database.migrate()
            await database.close()

        asyncio.run(make())
        return Path(folder, "fleet.db").read_bytes()


class ClockedServer(Generic[_C]):
    """The server on a clock. Use as a context manager."""

    def __init__(self, data: Path, clock: _C, **settings: Any) -> None:
        self.clock = clock
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # its log is no test's output
        self.rooms = Rooms(Settings(data=data, public_url=self.url, **settings), clock)
        if not self.rooms.database.shared:  # SQLite
            event.listen(self.rooms.database.engine.sync_engine, "connect", _no_wait_for_the_disk)
            if not (data / "fleet.db").exists():
                (data / "fleet.db").write_bytes(_empty_database())
        config = uvicorn.Config(
            create_app(self.rooms), log_config=None, ws=LineProtocol, timeout_graceful_shutdown=2,
            timeout_keep_alive=120,  # a client that pauses between two requests does not meet a line that is just being closed
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve(sockets=[self._listener])

    def __enter__(self) -> Self:
        self._thread.start()
        wait_for(lambda: self._server.started, "the server")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()

    def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run something in the server's loop."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    @property
    def key(self) -> str:
        """The admin's key."""
        return (self.rooms.settings.data / ADMIN_KEY).read_text().strip()

    def client(self, key: str | None = None) -> Client:
        """Return a client with the admin's key, or another one."""
        return Client(self.url, self.key if key is None else key)


class FleetApp(ClockedServer[ShiftedClock]):
    """A server on the machine's clock, which the test may shift."""

    def __init__(self, data: Path, **settings: Any) -> None:
        super().__init__(data, ShiftedClock(), **settings)


class ClockedFleet(ClockedServer[ManualClock]):
    """A server whose clock stands still until the test moves it.

    Its rollouts and experiments are numbered: what is drawn depends on their names, so each run of a test draws the same.
    """

    def __init__(self, data: Path, heartbeat_s: float = 5.0) -> None:
        super().__init__(data, ManualClock(), heartbeat_s=heartbeat_s)
        self._names = ExitStack()
        # what a moment may hold is limited; this one takes as long as the test
        self.rooms.key_requests = self.rooms.robot_messages = Buckets(SystemClock(), 1e4, 1000)

    def __enter__(self) -> Self:
        numbers = itertools.count(1)
        numbered = SimpleNamespace(token_hex=lambda size: f"{next(numbers):0{2 * size}x}")
        for module in (manager, rollouts):
            self._names.enter_context(mock.patch.object(module, "secrets", numbered))
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        with self._names:
            super().__exit__(*error)

    def advance(self, seconds: float) -> None:
        """Move the clock."""
        self.do(self.clock.advance(seconds))

    def until(self, found: Callable[[], _T], what: str) -> _T:
        """Let the clock run, second by second, until ``found`` gives something; return that."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (value := found()):
            assert time.monotonic() < deadline, f"no sign of {what} within {TIMEOUT_S:g} s"
            self.advance(1.0)
            self.do(self.rooms.experiments.step())  # on a busy machine the server's own loop rests for long
            time.sleep(0.01)
        return value
