# SPDX-License-Identifier: Apache-2.0
"""JSON messages and file descriptors between a parent and its child over a ``SOCK_SEQPACKET`` pair.

Message boundaries are the kernel's; the end of either side is seen by the other as end of file. Never a pickle.
"""

from __future__ import annotations

import array
import json
import select
import socket
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE_BYTES = 128 * 1024
MAX_FDS = 16


class ChannelClosedError(ConnectionError):
    """The other side has gone."""

    code = "CHANNEL_CLOSED"


class ChannelFullError(ConnectionError):
    """The other side does not read: the message was not sent."""

    code = "CHANNEL_FULL"


class Channel:
    """One end of the pair."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE_BYTES)
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Make both ends; hand the second to the child by ``pass_fds``."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """Take the end that this process was started with."""
        return cls(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fd))

    def fileno(self) -> int:
        """For select and poll."""
        return self.socket.fileno()

    def send(self, message: dict[str, Any], fds: Sequence[int] = (), *, block: bool = True) -> None:
        """Send one message. ``block=False`` raises :class:`ChannelFullError` rather than wait."""
        data = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
        if len(data) > MAX_MESSAGE_BYTES:
            raise ValueError(f"message of {len(data)} bytes, at most {MAX_MESSAGE_BYTES}")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.socket.sendmsg([data], ancillary, 0 if block else socket.MSG_DONTWAIT)
        except BlockingIOError as e:
            raise ChannelFullError("the other process does not read its channel") from e
        except OSError as e:
            raise ChannelClosedError("the other process has ended") from e

    def receive(self, timeout_s: float | None = 0.0) -> tuple[dict[str, Any], list[int]] | None:
        """Return the next message and its descriptors, ``None`` after ``timeout_s`` (``None`` = wait for ever).

        One thread at a time. Raises :class:`ChannelClosedError` at end of file.
        """
        if not self._readable.poll(None if timeout_s is None else timeout_s * 1e3):
            return None  # one system call and no memory: the control loop asks on every tick
        try:
            data, ancillary, _, _ = self.socket.recvmsg(
                MAX_MESSAGE_BYTES, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return None
        except OSError as e:
            raise ChannelClosedError("the other process has ended") from e
        if not data:
            raise ChannelClosedError("the other process has ended")
        fds: list[int] = []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                fds.extend(received)
        return json.loads(data), fds

    def close(self) -> None:
        """Close this end; the other side reads end of file."""
        self.socket.close()
