# SPDX-License-Identifier: Apache-2.0
"""The robots' line: one WebSocket each. What it says is in ``vla_fleet/protocol.py``."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import structlog
from fastapi import Response, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from vla_fleet import protocol
from vla_fleet.errors import FleetError, UnavailableError
from vla_fleet.robots.commands import topic
from vla_fleet.robots.inbox import Intake
from vla_fleet.server.keys import bearer
from vla_fleet.server.rooms import Rooms

log = structlog.get_logger("vla_fleet")

_PATH = "/v1/robots/connect"
_NOT_TEXT, _WRONG_DATA, _POLICY, _TRY_AGAIN = 1003, 1007, 1008, 1013
_LOST, _REPLACED, _ROTATES = 4000, 4001, 4002
_HELLO_S = 10.0


_Said = protocol.Hello | protocol.Status | protocol.Event | protocol.Outcome | protocol.Ack


class _Ends(Exception):  # noqa: N818 - it is how a line ends, not a defect
    """The line ends, for a reason that the robot is told."""

    def __init__(self, number: int, code: str, text: str = "") -> None:
        super().__init__(code)
        self.number, self.code = number, code
        self.reason = f"{code}: {text}" if text else code


async def serve(socket: WebSocket) -> None:
    """Serve one robot until it goes."""
    rooms: Rooms = socket.app.state.rooms
    if socket.url.path != _PATH:
        await _close(socket, _POLICY, "NOT_FOUND")
        return
    try:
        token = bearer(socket.headers.get("authorization", ""))
        robot = await rooms.directory.authenticate(token)
    except UnavailableError as e:
        log.warning("line refused", reason=str(e))
        await socket.send_denial_response(Response(str(e), e.status, {"Retry-After": "1"}))
        return
    except FleetError as e:
        rooms.metrics.rejected.labels(e.code).inc()
        await _close(socket, _POLICY, e.code)  # before accept: the robot sees 403
        return
    await socket.accept()
    try:
        await _Line(socket, rooms, robot, token).serve()
    except WebSocketDisconnect:
        log.info("robot disconnected", robot=robot)
    except _Ends as e:
        rooms.metrics.rejected.labels(e.code).inc()
        log.warning("line closed", robot=robot, reason=e.reason)
        await _close(socket, e.number, e.reason)
    except UnavailableError as e:  # what the robot has not been told is stored it sends again
        log.warning("line closed", robot=robot, reason=str(e))
        await _close(socket, _TRY_AGAIN, e.code)


async def _close(socket: WebSocket, number: int, reason: str) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):  # the robot was faster
        await socket.close(number, reason.encode(errors="replace")[:120].decode(errors="ignore"))


class _Line:
    """The connection of one robot."""

    __slots__ = (
        "_id",
        "_look_again",
        "_looking",
        "_replaced",
        "_robot",
        "_rooms",
        "_sent",
        "_socket",
        "_token",
        "_works",
    )

    def __init__(self, socket: WebSocket, rooms: Rooms, robot: str, token: str) -> None:
        self._socket, self._rooms, self._robot, self._token = socket, rooms, robot, token
        self._id = secrets.token_hex(8)
        self._works = _Works()
        self._sent: set[str] = set()
        self._replaced = self._look_again = False
        self._looking = True  # until the robot is welcome

    async def serve(self) -> None:
        """Greet the robot, then take in what it says and send it its orders, until one of both ends."""
        with self._rooms.bus.subscribe(topic(self._robot), self._hear):
            intake = await self._greet()
            self._looking = False
            self._look()
            await self._works.beside(self._listen(intake))

    async def _greet(self) -> Intake:
        rooms, robot = self._rooms, self._robot
        hello = await self._receive(_HELLO_S, "HELLO_MISSING")
        if not isinstance(hello, protocol.Hello):
            raise _Ends(_POLICY, "HELLO_MISSING")
        if protocol.PROTOCOL not in hello.protocols:
            raise _Ends(_POLICY, "PROTOCOL_UNKNOWN", f"this server speaks {protocol.PROTOCOL}")
        await rooms.bus.publish(topic(robot), self._id)  # an older line of this robot ends
        greeted = await rooms.inbox.hello(robot, hello)
        welcome = protocol.Welcome(
            protocol=protocol.PROTOCOL, robot=robot, heartbeat_s=rooms.settings.heartbeat_s,
            token=await rooms.directory.new_token(robot) if greeted.rotates else "",
        )  # fmt: skip
        await self._send(welcome)
        await self._send(protocol.Received(seq=greeted.stored))
        log.info("robot connected", robot=robot, software=hello.software)
        return Intake(rooms.inbox, robot, hello.outbox_id, self._confirm, self._works.start)

    async def _listen(self, intake: Intake) -> None:
        try:
            await self._take_in(intake)
        except (WebSocketDisconnect, _Ends):
            await intake.stored()  # a status is not sent again
            raise

    async def _take_in(self, intake: Intake) -> None:
        rooms, robot = self._rooms, self._robot
        while True:
            message = await self._receive(3 * rooms.settings.heartbeat_s, "HEARTBEAT_LOST")
            rooms.metrics.messages.labels(message.type).inc()
            if not isinstance(message, protocol.Hello):
                await intake.put(message)
            while (wait_s := rooms.robot_messages.take(robot)) > 0.0:  # nothing is lost: the robot's messages wait
                await rooms.clock.sleep(wait_s)

    async def _receive(self, timeout_s: float, code: str) -> _Said:
        try:
            async with asyncio.timeout(timeout_s):
                frame = await self._socket.receive()
        except TimeoutError as e:
            raise _Ends(_LOST, code, f"nothing came for {timeout_s:g} s") from e
        if frame["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(frame.get("code", 1005))
        if (text := frame.get("text")) is None:
            raise _Ends(_NOT_TEXT, "MESSAGE_INVALID", "messages are text frames")
        try:
            return protocol.FROM_ROBOT.validate_json(text)
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise _Ends(_WRONG_DATA, "MESSAGE_INVALID", f"{where}: {first['msg']}") from e

    def _hear(self, hint: str) -> None:
        """Look for orders, or end: another line of this robot gives its id."""
        if hint != self._id:
            self._replaced |= bool(hint)
            self._look()

    def _look(self) -> None:
        self._look_again = True
        if not self._looking:
            self._looking = True
            self._works.start(self._give_orders())

    async def _give_orders(self) -> None:
        """Send what is open and was not sent on this line; end the line when it must."""
        rooms, robot = self._rooms, self._robot
        while self._look_again:
            self._look_again = False
            if self._replaced:
                raise _Ends(_REPLACED, "LINE_REPLACED", "this robot has connected again")
            if why := await rooms.directory.line_ends(robot, self._token):
                raise _Ends(_ROTATES if why == "TOKEN_ROTATES" else _POLICY, why)
            open_rows = await rooms.commands.open_for(robot)
            for row in open_rows:
                if row.id not in self._sent:
                    self._sent.add(row.id)
                    frame = {"type": "command", "id": row.id, "order": row.order, "expires_s": row.expires_s}
                    command = protocol.Command.model_validate(frame)
                    order = rooms.passes.through(command.order, robot)
                    await self._send(command.model_copy(update={"order": order}))
            self._sent &= {row.id for row in open_rows}
        self._looking = False

    async def _confirm(self, seq: int) -> None:
        with suppress(WebSocketDisconnect):  # what the robot said last is stored all the same; listening ends by itself
            await self._send(protocol.Received(seq=seq))

    async def _send(self, message: protocol.Welcome | protocol.Command | protocol.Received) -> None:
        await self._socket.send_text(message.model_dump_json())


class _Works:
    """What is done beside listening to a robot. The first of it that fails ends the line; at rest there is none."""

    __slots__ = "_failure", "_listens", "_tasks"

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._listens: asyncio.Task[Any] | None = asyncio.current_task()
        self._failure: BaseException | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin something."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is not None and self._failure is None and self._listens is not None:
            self._failure = failure
            self._listens.cancel()

    async def beside(self, listening: Coroutine[Any, Any, None]) -> None:
        """Listen until that ends or something else fails; raise what it raised, and end everything."""
        try:
            await listening
        except asyncio.CancelledError:
            if self._failure is None or self._listens is None:
                raise
            self._listens.uncancel()
            raise self._failure from None
        finally:
            self._listens = None
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
