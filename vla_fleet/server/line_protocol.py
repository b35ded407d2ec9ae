# SPDX-License-Identifier: Apache-2.0
"""Uvicorn's WebSocket protocol, with little memory for a robot's line: a small compression, and no headers after the handshake.

Robots say nearly the same again and again, so what they send is compressed against what they sent before, in a window of 1 KiB.
The server says little: each of its messages is compressed by itself, and nothing is kept between two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

_COMPRESSION = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True,
    server_max_window_bits=10,
    client_max_window_bits=10,
    compress_settings={"memLevel": 3},
)


class LineProtocol(WebSocketsSansIOProtocol):
    """See the module."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.conn.available_extensions = [_COMPRESSION]

    async def send(self, message: ASGISendEvent) -> None:
        """See uvicorn: send what the application says."""
        await super().send(message)
        if message["type"] == "websocket.accept":  # nobody reads the handshake any more
            self.request = self.response = None  # type: ignore[assignment]
            self.scope["headers"].clear()  # type: ignore[attr-defined]
