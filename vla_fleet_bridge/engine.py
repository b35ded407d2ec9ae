# SPDX-License-Identifier: Apache-2.0
"""The bridge without ROS: one thread with an event loop that keeps a line to the server, and loses nothing while it is down."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from vla_fleet import protocol
from vla_fleet_bridge.orders import Orders
from vla_fleet_bridge.outbox import Outbox
from vla_fleet_bridge.port import RobotPort

log = logging.getLogger("vla_fleet_bridge")

_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 60.0
_ANSWER_S = 10.0
_LEAST_HEARTBEAT_S, _CLOSE_S = 0.1, 2.0
_SETTLED_S = 1.0
"""What acts so soon after the first status has acted before [s]."""
_SURE_S = 3.0
"""Nothing acts only if statuses say so for so long: a node that starts has not heard the others yet [s]."""
_WINDOW = 64
"""Kept messages that may be on their way before the server has confirmed one."""


@dataclass(frozen=True)
class BridgeConfig:
    """How the bridge reaches its server."""

    server: str
    """``wss://host[:port]`` (``ws://`` for a server on this machine or a trusted network)."""
    token: str
    outbox: Path
    software: str = ""
    boot_id: str = ""
    ca_file: str = ""
    """Certificate authority of the server, when the machine does not know it."""
    keep_token: Callable[[str], None] | None = None
    """Keeps a new token for good, or raises OSError; without it the robot stays with ``token``."""


@dataclass(frozen=True)
class Line:
    """How the line to the server stands, for people."""

    connected: bool
    since_s: float
    message: str


class BridgeEngine:
    """Give it statuses, events and outcomes from any thread; it hands orders to ``port``.

    ``on_change`` is called, from the bridge's thread, when the line is there or gone or its message changed. ``now`` is the
    robot's clock [s since 1970 UTC]; a simulated fleet's runs faster.
    """

    def __init__(
        self,
        config: BridgeConfig,
        port: RobotPort,
        on_change: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.config, self._now = config, now
        self._on_change, self._token = on_change, config.token
        self._outbox = Outbox(config.outbox)
        self._orders = Orders(self._outbox, port, self._more, now)
        self._status: protocol.Status | None = None
        self._acts = _Acting(self._outbox, self._orders)
        self._news, self._fresh_status, self._said_unsent = asyncio.Event(), False, 0
        self.line = Line(False, now(), "not connected yet")
        self._loop = asyncio.new_event_loop()
        self._main: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="vla_fleet_bridge", daemon=True)

    # -- from any thread ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def stop(self) -> None:
        """Close the line; what was not sent is sent after the next start."""
        self._loop.call_soon_threadsafe(lambda: self._main and self._main.cancel())
        self._thread.join(10.0)
        with suppress(sqlite3.Error):
            self._acts.flush()
        self._outbox.close()

    def on_status(self, status: protocol.Status) -> None:
        """Take in a status."""
        self._call(self._take_status, status)

    def on_event(self, event: protocol.Event) -> None:
        """Take in a transition."""
        self._call(self._take_event, event)

    def on_outcome(self, outcome: protocol.Outcome) -> None:
        """Take in how an episode ended."""
        self._call(self._take_kept, outcome)

    @property
    def outbox_size(self) -> int:
        """How many messages wait for the server."""
        return self._outbox.size

    @property
    def dropped(self) -> int:
        """How many messages were dropped because the outbox was full."""
        return self._outbox.dropped

    @property
    def last_command_id(self) -> str:
        """The command that came last."""
        return self._orders.last_id

    def _call(self, work: Callable[[Any], None], value: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: the bridge was stopped
            self._loop.call_soon_threadsafe(self._take, work, value)

    # -- in the event loop --------------------------------------------------------------------------------------------------

    def _take(self, work: Callable[[Any], None], value: Any) -> None:
        try:
            work(value)
        except sqlite3.Error as e:
            self._outbox.dropped += 1
            log.error("STATE_DIR: a message is lost: %s: %s", self.config.outbox, e)

    def _take_status(self, status: protocol.Status) -> None:
        self._status, self._fresh_status = status, True
        self._orders.on_status(status)
        self._news.set()
        self._acts.on_status(status)

    def _take_event(self, event: protocol.Event) -> None:
        try:
            self._take_kept(event)
        finally:
            self._orders.on_event(event)

    def _take_kept(self, message: protocol.Event | protocol.Outcome) -> None:
        self._outbox.put(message)
        self._more()

    def _more(self) -> None:
        self._news.set()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(self._live())
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._main)
        self._loop.close()

    async def _live(self) -> None:
        orders = asyncio.create_task(self._orders.run())
        try:
            await self._stay_connected()
        finally:
            orders.cancel()
            await asyncio.gather(orders, return_exceptions=True)

    async def _stay_connected(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._connect()
            except _NewToken:
                continue
            except (OSError, WebSocketException, ValueError) as e:
                self._say(False, _about(e))
            except sqlite3.Error as e:
                self._say(False, f"STATE_DIR: {self.config.outbox}: {e}")
            except Exception as e:  # a defect; without a line nobody could order the robot back
                log.exception("the line is opened again")
                self._say(False, f"{type(e).__name__}: {e}")
            failures = 0 if time.monotonic() - began > _LONGEST_RETRY_S else failures + 1
            await asyncio.sleep(retry_after_s(failures))

    async def _connect(self) -> None:
        url = f"{self.config.server.rstrip('/')}/v1/robots/connect"
        tls = ssl.create_default_context(cafile=self.config.ca_file or None) if url.startswith("wss:") else None
        headers = {"Authorization": f"Bearer {self._token}"}
        options: dict[str, Any] = {
            "ssl": tls,
            "max_size": protocol.MAX_FRAME_BYTES,
            "ping_interval": None,
            "close_timeout": _CLOSE_S,
        }
        async with connect(url, additional_headers=headers, **options) as socket:
            hello = protocol.Hello(
                protocols=[protocol.PROTOCOL], outbox_id=self._outbox.id, software=self.config.software,
                boot_id=self.config.boot_id,
            )  # fmt: skip
            await socket.send(hello.model_dump_json())
            async with asyncio.timeout(_ANSWER_S):
                welcome = protocol.FROM_SERVER.validate_json(await socket.recv())
            if not isinstance(welcome, protocol.Welcome):
                raise ValueError("MESSAGE_INVALID: the server did not say welcome")
            if welcome.protocol != protocol.PROTOCOL:
                text = f"the server chose protocol {welcome.protocol}; this robot speaks {protocol.PROTOCOL}"
                raise ValueError(f"PROTOCOL_UNKNOWN: {text}")
            self._outbox.keep_robot(welcome.robot)
            self._say(True, f"connected as {welcome.robot}")
            self._take_token(welcome.token)
            await self._talk(socket, max(_LEAST_HEARTBEAT_S, welcome.heartbeat_s))

    def _take_token(self, token: str) -> None:
        """Keep a new token and connect again with it; if it cannot be kept, go on with the one that is valid still."""
        if not token or self.config.keep_token is None:
            return
        try:
            self.config.keep_token(token)
        except OSError as e:
            log.error("STATE_DIR: the new token cannot be kept: %s", e)
            return
        self._token = token
        raise _NewToken

    async def _talk(self, socket: ClientConnection, heartbeat_s: float) -> None:
        progress = _Progress()
        sender = asyncio.create_task(self._send(socket, heartbeat_s, progress))
        receiver = asyncio.create_task(self._receive(socket, progress))
        keeper = asyncio.create_task(self._keep_alive(socket, heartbeat_s))
        tasks = {sender, receiver, keeper}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    async def _keep_alive(socket: ClientConnection, heartbeat_s: float) -> None:
        """End a line on which the server, or what is between, has fallen silent."""
        while True:
            await asyncio.sleep(heartbeat_s)
            pong = await socket.ping()
            try:
                async with asyncio.timeout(3 * heartbeat_s):
                    await pong
            except TimeoutError as e:
                raise TimeoutError(f"HEARTBEAT_LOST: no answer for {3 * heartbeat_s:g} s") from e

    async def _receive(self, socket: ClientConnection, progress: _Progress) -> None:
        async for frame in socket:
            message = _readable(frame)
            if isinstance(message, str):
                self._orders.refuse(message)
            elif isinstance(message, protocol.Received):
                self._outbox.stored(message.seq)
                progress.stored = max(progress.stored, message.seq)
                progress.sent = max(progress.sent, progress.stored)
                if self._said_unsent and not self._outbox.size:
                    self._fresh_status = True  # now the server knows all
                self._more()
            elif isinstance(message, protocol.Command):
                if isinstance(message.order, protocol.GetStatus):
                    self._fresh_status = True
                self._orders.add(message)
                self._more()
        raise ConnectionError("the server closed the line")

    async def _send(self, socket: ClientConnection, heartbeat_s: float, progress: _Progress) -> None:
        self._fresh_status = self._status is not None
        while True:
            self._news.clear()
            if self._fresh_status and self._status is not None:
                self._fresh_status = False
                await self._send_status(socket, self._status)
            room = _WINDOW - (progress.sent - progress.stored)
            for message in self._outbox.after(progress.sent, max(0, room)):
                await socket.send(message.model_dump_json())
                progress.sent = message.seq
            try:
                async with asyncio.timeout(heartbeat_s):
                    await self._news.wait()
            except TimeoutError:
                status = self._status or protocol.Status(time_s=self._now())
                await self._send_status(socket, status)

    async def _send_status(self, socket: ClientConnection, status: protocol.Status) -> None:
        self._said_unsent = self._outbox.size
        await socket.send(status.model_copy(update={"unsent": self._said_unsent}).model_dump_json())

    def _say(self, connected: bool, message: str) -> None:
        if connected != self.line.connected or message != self.line.message:
            log.log(logging.INFO if connected else logging.WARNING, "%s: %s", self.config.server, message)
            since_s = self._now() if connected != self.line.connected else self.line.since_s
            self.line = Line(connected, since_s, message)
            self._on_change()


@dataclass
class _Progress:
    """How far kept messages of this connection have come, by ``seq``."""

    sent: int = 0
    stored: int = 0


def _about(error: Exception) -> str:
    if isinstance(error, InvalidStatus) and error.response.status_code in (401, 403):
        return "TOKEN_INVALID: the server does not know this robot; delete its state_dir/token and enrol it again"
    return " ".join(str(error).split()) or type(error).__name__


_ID: TypeAdapter[str] = TypeAdapter(protocol.Id)


def _readable(frame: str | bytes) -> protocol.ServerMessage | str:
    """Return what the server says, or the id of a command that this software cannot read; else ValueError."""
    try:
        return protocol.FROM_SERVER.validate_json(frame)
    except ValidationError:
        message = json.loads(frame)
        if not isinstance(message, dict) or message.get("type") != "command":
            raise
        return _ID.validate_python(message.get("id"))


class _NewToken(Exception):  # noqa: N818 - a way to connect again, not a defect
    """The robot has a new token."""


def retry_after_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row [s]: longer each time, and not every robot at once."""
    longest = min(_FIRST_RETRY_S * 2.0 ** min(max(failures - 1, 0), 30), _LONGEST_RETRY_S)
    return random.uniform(0.5, 1.0) * longest


class _Acting:
    """Makes a kept event of every change of what acts, so that the server knows what ran when, also without a network."""

    def __init__(self, outbox: Outbox, orders: Orders) -> None:
        self._outbox, self._orders = outbox, orders
        self._last = outbox.active
        self._looks_since_s: float | None = None
        self._nothing_since_s: float | None = None
        self._unexplained: protocol.Event | None = None
        """A change of which nobody has said why."""

    def on_status(self, status: protocol.Status) -> None:
        """Take in a status."""
        since_s = status.time_s
        self._looks_since_s = since_s if self._looks_since_s is None else self._looks_since_s
        if status.active_version or status.active_digest:
            self._nothing_since_s = None
        else:
            self._nothing_since_s = since_s = self._nothing_since_s or status.time_s
            if abs(status.time_s - since_s) < _SURE_S:  # the robot's clock may have been set back
                return
        now = status.active_version, status.active_digest
        waits = self._unexplained
        if waits is not None and now != (waits.version, waits.digest):
            self.flush()
            waits = None
        if now == self._last:
            return
        settled = abs(since_s - self._looks_since_s) > _SETTLED_S
        looked = settled or self._orders.offered(status.update_id)  # what was offered just now has not acted before
        command_id, target = self._orders.way_back
        if ordered := bool(command_id) and target == status.active_version:
            self._orders.way_back = "", ""
        event = protocol.Event(
            time_s=since_s, update_id=command_id if ordered else status.update_id, from_state="",
            to_state=protocol.ACTIVE, version=now[0], digest=now[1],
            cause="ROLLBACK" if ordered else self._cause(status) if looked else "FOUND",
        )  # fmt: skip
        if waits is not None:
            event = event.model_copy(update={"time_s": waits.time_s})
        if (
            not event.cause and abs(status.time_s - event.time_s) < _SURE_S
        ):  # the report of the swap comes a second later
            self._unexplained = event
        else:
            self._keep(event)

    def flush(self) -> None:
        """Keep a change though nobody has said why."""
        if self._unexplained is not None:
            self._keep(self._unexplained)

    def _keep(self, event: protocol.Event) -> None:
        self._outbox.put_active(event)
        self._last, self._unexplained = (event.version, event.digest), None

    @staticmethod
    def _cause(status: protocol.Status) -> str:
        """Return what policy_node says, or what the manager is doing."""
        if status.experiment and status.active_cause in ("", "UPDATE"):  # the draw's report comes a second later
            return "EXPERIMENT"
        if status.active_cause:
            return status.active_cause
        if status.state in ("ROLLING_BACK", "ROLLED_BACK"):
            return "ROLLBACK"
        return "UPDATE" if status.state in ("SWAPPING", "TRIAL", "COMMITTED") else ""
