# SPDX-License-Identifier: Apache-2.0
"""The real server in a thread of this process, on a real socket and on a clock that the test moves: a day takes milliseconds."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import uvicorn

from vla_fleet.client import Client
from vla_fleet.clock import ManualClock
from vla_fleet.server.app import create_app
from vla_fleet.server.rooms import Rooms, Settings

_T = TypeVar("_T")


class ClockedFleet:
    """A context manager; ``until`` lets the server's clock run until something holds."""

    def __init__(self, data: Path) -> None:
        self.clock = ManualClock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._rooms = Rooms(Settings(data=data, public_url=self.url, heartbeat_s=5.0), self.clock)
        self._server = uvicorn.Server(
            uvicorn.Config(create_app(self._rooms), log_level="warning", ws="websockets-sansio", lifespan="on")
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="clocked_fleet")
        self._data = data

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve(sockets=[self._listener]))
        self._loop.close()

    def __enter__(self) -> ClockedFleet:
        self._thread.start()
        deadline = time.monotonic() + 20.0
        while not self._server.started:
            assert self._thread.is_alive() and time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20.0)
        assert not self._thread.is_alive()

    def client(self) -> Client:
        """Return a client with the admin's key."""
        return Client(self.url, (self._data / "admin.key").read_text().strip())

    def advance(self, seconds: float) -> None:
        """Move the clock."""
        asyncio.run_coroutine_threadsafe(self.clock.advance(seconds), self._loop).result(20.0)

    def until(self, found: Callable[[], _T], what: str, timeout_s: float = 30.0) -> _T:
        """Let the clock run, second by second, until ``found`` gives something; return that."""
        deadline = time.monotonic() + timeout_s
        while not (value := found()):
            assert time.monotonic() < deadline, f"no sign of {what} within {timeout_s:g} s"
            self.advance(1.0)
            time.sleep(0.01)
        return value
