# SPDX-License-Identifier: Apache-2.0
"""The server behind the mirror: it decides who may read a blob, and has the bytes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from vla_fleet.clock import Clock
from vla_fleet.errors import MissingError, RoleError, UpstreamError

GRANT_S = 600.0
"""How long the origin's permission counts. It counts longer while the origin cannot be reached."""
_GRANTS = 100_000
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")


class Origin:
    """Asks the origin whether somebody may read, and reads.

    Args:
        url: scheme, host and port, and a path prefix if it has one.
        client: sends the requests.
        clock: ends permissions.
    """

    def __init__(self, url: str, client: httpx.AsyncClient, clock: Clock) -> None:
        self._url, self._client, self._clock = url.rstrip("/"), client, clock
        self._granted: dict[
            tuple[str, str], tuple[float, int]
        ] = {}  # (path, authorization) → when, and the blob's size
        self.fetched_bytes = 0

    async def permit(self, path: str, authorization: str, is_here: bool) -> int:
        """Return a blob's size [bytes] if the origin lets whoever asks read it; an earlier answer counts if the blob ``is_here``.

        Raises:
            RoleError, MissingError: what the origin answered.
            UpstreamError: MIRROR_ORIGIN: it cannot be reached, or answered something else.
        """
        key = (path, authorization)
        granted_s, size = self._granted.get(key, (float("-inf"), 0))
        if is_here and self._clock.now() - granted_s < GRANT_S:
            return size
        try:
            size = await self._size(path, authorization)
        except UpstreamError:
            if is_here and key in self._granted:  # the line to the origin may be down for hours
                return size
            raise
        except (RoleError, MissingError):
            self._granted.pop(key, None)
            raise
        while len(self._granted) >= _GRANTS:
            del self._granted[next(iter(self._granted))]
        self._granted[key] = self._clock.now(), size
        return size

    async def _size(self, path: str, authorization: str) -> int:
        async with _upstream(self._client, self._url + path, authorization, "bytes=0-0") as reply:
            if reply.status_code == 206 and (found := _RANGE.fullmatch(reply.headers.get("content-range", ""))):
                return int(found[2])
            length = reply.headers.get("content-length", "")
            if reply.status_code == 200 and length.isdigit():
                return int(length)
            raise UpstreamError("MIRROR_ORIGIN", f"the origin answered {reply.status_code} without a length")

    async def read(self, path: str, authorization: str, start: int, size: int) -> AsyncIterator[bytes]:
        """Yield a blob's bytes from ``start`` on; raise UpstreamError unless they end at ``size``."""
        async with _upstream(self._client, self._url + path, authorization, f"bytes={start}-") as reply:
            found = _RANGE.fullmatch(reply.headers.get("content-range", ""))
            skip = start - int(found[1]) if found else start  # without ranges the whole comes again
            if reply.status_code not in (200, 206) or skip < 0:
                raise UpstreamError("MIRROR_ORIGIN", f"the origin answered {reply.status_code}")
            async for data in reply.aiter_raw():
                self.fetched_bytes += len(data)
                data, skip = data[skip:], max(0, skip - len(data))
                start += len(data)
                if start > size:
                    raise UpstreamError("MIRROR_ORIGIN", f"the origin sends more than the {size} bytes announced")
                if data:
                    yield data
        if start < size:
            raise UpstreamError("MIRROR_ORIGIN", f"the origin's answer ended after {start} of {size} bytes")


@asynccontextmanager
async def _upstream(
    client: httpx.AsyncClient, url: str, authorization: str, part: str
) -> AsyncIterator[httpx.Response]:
    headers = {"Range": part, "Accept-Encoding": "identity"}
    if authorization:
        headers["Authorization"] = authorization
    try:
        async with client.stream("GET", url, headers=headers) as reply:
            if reply.status_code in (401, 403):
                raise RoleError(
                    "MIRROR_REFUSED", f"the origin answered {reply.status_code}: this pass or key may not read"
                )
            if reply.status_code == 404:
                raise MissingError("BLOB_MISSING", "the origin has no such blob")
            yield reply
    except (httpx.TransportError, httpx.InvalidURL) as e:
        raise UpstreamError("MIRROR_ORIGIN", f"the origin cannot be reached: {e or type(e).__name__}") from e
