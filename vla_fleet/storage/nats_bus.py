# SPDX-License-Identifier: Apache-2.0
"""The bus between several servers: NATS.

Messages are hints to look into the database, so plain NATS is enough: nothing on the bus has to outlive a server. What a
connection that was lost has swallowed is made good by letting everybody look once it is back.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractContextManager

import nats
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from vla_fleet.errors import UnavailableError
from vla_fleet.storage.bus import LocalBus

log = structlog.get_logger("vla_fleet")

_SUBJECT = "vla_fleet.hints"
_CONNECT_S, _RETRY_S = 10.0, 1


class NatsBus:
    """A bus between all servers that use the same NATS.

    Args:
        url: ``nats://user:password@host:4222``, or several of them with commas between.
    """

    def __init__(self, url: str) -> None:
        self._servers = url.split(",")
        self.local = LocalBus()
        self._nats = Client()

    async def open(self) -> None:
        """Connect. A connection that is lost later is made again for as long as that takes.

        Raises:
            UnavailableError: BUS_UNREACHABLE.
        """
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._nats.connect(
                    self._servers,
                    name="vla-fleet",
                    no_echo=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=_RETRY_S,
                    error_cb=self._failed,
                    reconnected_cb=self._reconnected,
                )
                await self._nats.subscribe(_SUBJECT, cb=self._heard)
        except (TimeoutError, OSError, nats.errors.Error, ValueError) as e:
            text = f"no NATS server answers ({str(e) or type(e).__name__}); is it running, and is --bus right?"
            raise UnavailableError("BUS_UNREACHABLE", text) from e

    async def close(self) -> None:
        """Say what is left to say, and disconnect."""
        if self._nats.is_connected:
            await self._nats.flush()
        await self._nats.close()

    async def publish(self, topic: str, text: str = "") -> None:
        """Tell every subscriber of ``topic``, those of this server in any case."""
        await self.local.publish(topic, text)
        try:
            await self._nats.publish(_SUBJECT, json.dumps([topic, text]).encode())
        except nats.errors.Error as e:  # the other servers look by themselves, later
            log.warning("a hint was not sent", reason=str(e))

    def subscribe(self, topic: str, hear: Callable[[str], None]) -> AbstractContextManager[None]:
        """Call ``hear`` with what is published on ``topic`` while the context lasts; it must not wait or raise."""
        return self.local.subscribe(topic, hear)

    async def _heard(self, message: Msg) -> None:
        topic, text = json.loads(message.data)
        await self.local.publish(topic, text)

    async def _reconnected(self) -> None:
        log.info("connected to NATS again")
        await self.local.publish_everywhere()

    async def _failed(self, error: Exception) -> None:
        log.warning("the connection to NATS failed", reason=str(error) or type(error).__name__)
        if isinstance(error, nats.errors.SlowConsumerError):
            await self.local.publish_everywhere()
