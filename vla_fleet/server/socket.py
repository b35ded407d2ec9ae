# SPDX-License-Identifier: Apache-2.0
"""The robots' line: one WebSocket each. What it says is in ``vla_fleet/protocol.py``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from vla_fleet import protocol
from vla_fleet.errors import FleetError
from vla_fleet.robots.commands import topic
from vla_fleet.robots.inbox import Intake
from vla_fleet.server.keys import bearer
from vla_fleet.server.rooms import Rooms

router = APIRouter()
log = structlog.get_logger("vla_fleet")

_POLICY, _WRONG_DATA, _REPLACED = 1008, 1007, 4001
_HELLO_S = 10.0


@router.websocket("/v1/robots/connect")
async def connect(socket: WebSocket) -> None:
    """Serve one robot until it goes."""
    rooms: Rooms = socket.app.state.rooms
    try:
        robot = await rooms.directory.authenticate(bearer(socket.headers.get("authorization", "")))
    except FleetError as e:
        await socket.close(_POLICY, e.code)  # before accept: the robot sees 403
        return
    await socket.accept()
    try:
        async with asyncio.timeout(_HELLO_S):
            hello = protocol.FROM_ROBOT.validate_json(await socket.receive_text())
        if not isinstance(hello, protocol.Hello):
            await socket.close(_POLICY, "HELLO_MISSING")
        elif protocol.PROTOCOL not in hello.protocols:
            await socket.close(_POLICY, f"PROTOCOL_UNKNOWN: this server speaks {protocol.PROTOCOL}")
        else:
            await _serve(socket, rooms, robot, hello)
    except ValidationError as e:
        await socket.close(_WRONG_DATA, f"MESSAGE_INVALID: {e.errors()[0]['msg']}"[:120])
    except (WebSocketDisconnect, TimeoutError):
        pass


async def _serve(socket: WebSocket, rooms: Rooms, robot: str, hello: protocol.Hello) -> None:
    stored = await rooms.inbox.hello(robot, hello)
    heartbeat_s = rooms.settings.heartbeat_s
    await _send(socket, protocol.Welcome(protocol=protocol.PROTOCOL, robot=robot, heartbeat_s=heartbeat_s))
    await _send(socket, protocol.Received(seq=stored))
    log.info("robot connected", robot=robot, software=hello.software)
    intake = Intake(rooms.inbox, robot, lambda seq: _send(socket, protocol.Received(seq=seq)))
    try:
        await _first_of(_listen(socket, intake, heartbeat_s), intake.run(), _send_commands(socket, rooms, robot))
    finally:
        log.info("robot disconnected", robot=robot)


async def _listen(socket: WebSocket, intake: Intake, heartbeat_s: float) -> None:
    while True:
        async with asyncio.timeout(3 * heartbeat_s):
            message = protocol.FROM_ROBOT.validate_json(await socket.receive_text())
        if not isinstance(message, protocol.Hello):
            await intake.put(message)


async def _send_commands(socket: WebSocket, rooms: Rooms, robot: str) -> None:
    """Send what is open once a connection, and what is added as it comes."""
    sent: set[str] = set()
    async with rooms.bus.subscribe(topic(robot)) as hints:
        while True:
            for row in await rooms.commands.open_for(robot):
                if row.id not in sent:
                    sent.add(row.id)
                    frame = {"type": "command", "id": row.id, "order": row.order, "expires_s": row.expires_s}
                    await _send(socket, protocol.Command.model_validate(frame))
            await hints.get()


async def _send(socket: WebSocket, message: protocol.Welcome | protocol.Command | protocol.Received) -> None:
    await socket.send_text(message.model_dump_json())


async def _first_of(*works: Coroutine[Any, Any, None]) -> None:
    """Run until one ends, and end the others; raise what it raised."""
    tasks = {asyncio.create_task(work) for work in works}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
