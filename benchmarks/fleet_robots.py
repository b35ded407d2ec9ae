# SPDX-License-Identifier: Apache-2.0
"""Many robots in one process, for ``benchmarks.fleet``: simulated ones on the real line, or bare sockets that echo.

Asked in JSON lines by ``benchmarks.processes.Host``: ``connect`` answers when all are connected, ``back`` when all are back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from benchmarks.processes import say
from vla_fleet_bridge.port import Answer
from vla_sim.fleet.simulated_robot import SimulatedRobot

_LIMIT_S = 300.0
_POLL_S = 0.02


class _Robot(SimulatedRobot):
    """Notes when it acts again with the version gone back to."""

    back_s = 0.0
    """[s since 1970 UTC]"""

    def rollback(self, version: str, reason: str) -> Answer:
        answer = super().rollback(version, reason)
        self.back_s = time.time()
        return answer


def _wait(condition: Any, what: str) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_LIMIT_S:.0f} s in vain for {what}")
        time.sleep(_POLL_S)


def simulated(server: str, tokens: dict[str, str], folder: Path) -> None:
    """Serve the driver with robots on the real ``BridgeEngine``."""
    robots = {name: _Robot(name) for name in tokens}
    for line in sys.stdin:
        if json.loads(line)["do"] == "connect":
            for name, robot in robots.items():
                robot.connect(server, tokens[name], folder / name)
            _wait(lambda: all(robot.online for robot in robots.values()), "the connections")
            say(at_s=time.time())
        else:
            _wait(lambda: all(robot.back_s for robot in robots.values()), "the way back")
            say(at_s=max(robot.back_s for robot in robots.values()))
    for robot in robots.values():  # not one after the other: each waits for its bridge's thread
        threading.Thread(target=robot.disconnect).start()


def bare(server: str, names: Sequence[str]) -> None:
    """Serve the driver with sockets that send back what they receive."""
    asyncio.run(_bare(server, names))


async def _bare(server: str, names: Sequence[str]) -> None:
    last_s = 0.0

    async def echo(socket: ClientConnection) -> None:
        nonlocal last_s
        message = await socket.recv()
        last_s = max(last_s, time.time())
        await socket.send(message)

    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await lines.readline()
    sockets = [await connect(server) for _ in names]
    tasks = [asyncio.create_task(echo(socket)) for socket in sockets]
    say(at_s=time.time())
    await lines.readline()
    await asyncio.gather(*tasks)
    say(at_s=last_s)
    await asyncio.gather(*(socket.close() for socket in sockets))


def main() -> None:
    """Run what the settings ask for: ``server``, ``tokens`` (robot → token), ``folder`` of the outboxes; empty: bare sockets."""
    logging.getLogger("vla_fleet_bridge").setLevel(logging.CRITICAL)  # a line that is not up yet is no news here
    settings = json.loads(sys.argv[1])
    threading.stack_size(512 << 10)  # three threads a robot
    if settings["folder"]:
        simulated(settings["server"], json.loads(Path(settings["tokens"]).read_text()), Path(settings["folder"]))
    else:
        bare(settings["server"], settings["tokens"])


if __name__ == "__main__":
    main()
