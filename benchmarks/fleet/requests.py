# SPDX-License-Identifier: Apache-2.0
"""HTTP requests on connections that are kept, cheap enough for thousands a second: what polls, and what enrols robots."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from typing import Any, Self
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Connection:
    """One HTTP/1.1 connection to ``url``'s host; ``secret`` is its bearer token or key, if there is one."""

    def __init__(self, url: str, secret: str = "") -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self._host, self._port = parts.hostname, parts.port
        self._head = f"Host: {self._host}\r\n" + (f"Authorization: Bearer {secret}\r\n" if secret else "")

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return the body of an answer; RuntimeError if it is a refusal."""
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{self._head}{kind}\r\n".encode() + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        found = _LENGTH.search(head)
        answer = await self._reader.readexactly(int(found[1]) if found else 0)
        if not head.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(f"{method} {path}: {answer.decode()}")
        return answer


async def poll(url: str, tokens: Sequence[str], seconds: float) -> float:
    """Return how many requests a second are answered, if each client asks again as soon as it has its answer [1/s]."""
    end_s = time.monotonic() + seconds

    async def client(token: str) -> int:
        answered = 0
        async with Connection(url, token) as connection:
            while time.monotonic() < end_s:
                await connection.ask("GET", urlsplit(url).path)
                answered += 1
        return answered

    return sum(await asyncio.gather(*map(client, tokens))) / seconds


async def enrol(server: str, keys: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Enrol robots over a connection for each admin's key, in turn; return their tokens."""
    left = iter(names)
    tokens: dict[str, str] = {}

    async def client(key: str) -> None:
        async with Connection(server, key) as connection:
            for name in left:
                made = await _post(connection, "/v1/enrolment-codes", {"robot": name, "valid_s": 7200.0})
                tokens[name] = (await _post(connection, "/v1/enrol", made))["token"]

    await asyncio.gather(*map(client, keys))
    return tokens


async def _post(connection: Connection, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await connection.ask("POST", path, json.dumps(body).encode()))
    return answer
