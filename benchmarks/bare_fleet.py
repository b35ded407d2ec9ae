# SPDX-License-Identifier: Apache-2.0
"""The floor for ``benchmarks.fleet``: a bare ``websockets`` server that sends each connection one message and hears it back.

No authentication, no database, no acknowledgement that survives a crash: what the sockets alone cost.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from websockets.asyncio.server import ServerConnection, serve

from benchmarks.processes import say


async def _main(message: str) -> None:
    sockets: list[ServerConnection] = []
    answered: asyncio.Queue[None] = asyncio.Queue()

    async def talk(socket: ServerConnection) -> None:
        sockets.append(socket)
        async for _ in socket:
            answered.put_nowait(None)

    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with serve(talk, "127.0.0.1", 0, ping_interval=None) as server:
        say(port=server.sockets[0].getsockname()[1])
        await lines.readline()
        for socket in sockets:
            await socket.send(message)
        for _ in sockets:
            await answered.get()
        say(at_s=time.time())
        await lines.readline()


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])["message"]))
