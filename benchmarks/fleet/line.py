# SPDX-License-Identifier: Apache-2.0
"""A WebSocket client that costs little: 10,000 of them fit into one process.

``websockets``' protocol without its I/O, on plain asyncio transports: no task and no timer for each connection. It offers
compression and sends pings as ``fleet_bridge`` does.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri


class Listener(Protocol):
    """What a line calls when something happens on it. Each may be called within :meth:`Line.send`."""

    def opened(self) -> None:
        """The line stands."""
        ...

    def heard(self, text: bytes) -> None:
        """A message came."""
        ...

    def lost(self) -> None:
        """The line has ended, or never stood."""
        ...


class Line(asyncio.Protocol):
    """One connection to ``url``, with a token if the server wants one."""

    def __init__(self, url: str, token: str, listener: Listener) -> None:
        compression = ClientPerMessageDeflateFactory(client_max_window_bits=True, compress_settings={"memLevel": 5})
        self._socket = ClientProtocol(parse_uri(url), extensions=[compression])
        self._token, self._listener = token, listener
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._socket.state is State.OPEN

    def send(self, text: bytes) -> None:
        """Send a message."""
        self._socket.send_text(text)
        self._flush()

    def ping(self) -> None:
        """Ask the server whether it is there."""
        self._socket.send_ping(b"")
        self._flush()

    def drop(self) -> None:
        """End it as a network does that is gone: what has not arrived is lost."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        request = self._socket.connect()
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        self._socket.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._socket.receive_data(data)
        for event in self._socket.events_received():
            if isinstance(event, Response):
                if self.is_open:
                    self._listener.opened()
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._listener.heard(bytes(event.data))
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._socket.receive_eof()
        self._transport = None
        self._listener.lost()

    def _flush(self) -> None:
        for data in self._socket.data_to_send():
            if self._transport is not None:
                self._transport.write(data) if data else self._transport.close()
