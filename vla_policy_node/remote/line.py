# SPDX-License-Identifier: Apache-2.0
"""Frames between a robot's worker and a worker host: TCP, mutual TLS 1.3, heartbeats both ways.

A frame is a header, big-endian ``magic[4] version:u16 kind:u16 length:u32``, and ``length`` bytes: a JSON object, a file's bytes,
or arrays in the memory layout of ``messages.py`` (little-endian). No length is believed before it was compared with what that
kind of frame may have. Never a pickle.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import ssl
import struct
import time
from collections import deque
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeGuard

from vla_policy_node.errors import WorkerError

MAGIC, VERSION = b"VLAR", 2
_HEADER = struct.Struct(">4sHHI")
DATA_BYTES = 1 << 18
"""Most bytes of a file in one frame."""
CONNECT_TIMEOUT_S = 5.0
"""Of connecting, of the handshake, and of the first frame."""
PREPARING_SILENCE_S = 10.0
"""While nothing acts, either side may be busy with a disk this long [s]."""
_READ_BYTES = 1 << 22  # at a time, so that a peer that never stops does not keep a thread
_MAX_QUEUED_BYTES = 1 << 26


class Kind(IntEnum):
    """What a frame is; from the robot, or from the host."""

    HEARTBEAT = 0  # either; the host's first frame
    HELLO = 1  # robot, JSON: digest, silence_s, features
    MANIFEST = 2  # robot: the bundle's manifest; of an adapter its base's after it
    WANT = 3  # host, JSON: sha256 of a file that it lacks
    DATA = 4  # robot: the next bytes of that file
    PROGRESS = 5  # host, JSON: state, fraction
    READY = 6  # host, JSON: what the policy is like
    FAILED = 7  # host, JSON: code, message; the last one
    OBSERVATION = 8  # robot: ``messages.observation_frame``
    CHUNK = 9  # host: ``ipc.layouts.chunk_layout``
    NO_CHUNK = 10  # host, JSON: request, error, text


_LIMITS = {
    Kind.HEARTBEAT: 0, Kind.HELLO: 1 << 16, Kind.MANIFEST: 1_000_000, Kind.WANT: 1 << 10, Kind.DATA: DATA_BYTES,
    Kind.PROGRESS: 1 << 10, Kind.READY: 1 << 16, Kind.FAILED: 1 << 16, Kind.OBSERVATION: 0, Kind.CHUNK: 0,
    Kind.NO_CHUNK: 1 << 16,
}  # fmt: skip
"""Most bytes of a frame; observations and chunks have exactly what :meth:`Line.expect` says."""

Frame = tuple[Kind, bytearray]


class LineError(WorkerError):
    """The line cannot be used (any more)."""


def broken(text: str) -> LineError:
    """Return the error for a peer that does not keep to the protocol."""
    return LineError("REMOTE_PROTOCOL", text)


def parse(body: bytearray) -> dict[str, Any]:
    """Return a frame's JSON object. Raises LineError REMOTE_PROTOCOL."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise broken(f"a frame is not JSON: {e}") from e
    if not isinstance(document, dict):
        raise broken("a frame is no JSON object")
    return document


class Line:
    """One end of a connection, used by one thread at a time.

    Args:
        sock: connected, its handshake done.
        silence_s: the connection is lost when nothing was received for so long.
    """

    def __init__(self, sock: ssl.SSLSocket, silence_s: float = PREPARING_SILENCE_S) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self._socket = sock
        self._limits, self._kept = dict(_LIMITS), dict[Kind, bytearray]()
        self._out: deque[memoryview] = deque()
        self.queued = 0
        """Bytes that are not sent yet."""
        self._greeted = False
        self._kind: Kind | None = None  # of the frame whose body is being read; None: a header is
        self._body, self._filled = bytearray(_HEADER.size), 0
        self.heartbeat_s = 0.25
        """Something is sent at least so often, as long as :meth:`exchange` is called [s]."""
        self._sent_s = time.monotonic()
        self.tolerate(silence_s)

    def tolerate(self, silence_s: float) -> None:
        """From now on the other side may be silent so long [s]."""
        self._silence_s, self._heard_s = silence_s, time.monotonic()

    def greet(self) -> None:
        """Wait for the first frame, a heartbeat: until then a client does not know that it was let in. Raises LineError."""
        end_s = time.monotonic() + CONNECT_TIMEOUT_S
        while not self._greeted:
            if time.monotonic() > end_s:
                raise LineError("WORKER_HOST_LOST", f"no whole frame came in {CONNECT_TIMEOUT_S:g} s")
            self.wait(1.0)
            self.exchange()
        self.tolerate(PREPARING_SILENCE_S)

    def expect(self, kind: Kind, size: int) -> None:
        """Accept frames of a kind with exactly ``size`` bytes; each is overwritten by the next: touched memory is fast."""
        self._limits[kind], self._kept[kind] = size, bytearray(size)

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def send(self, kind: Kind, body: bytes | bytearray | memoryview = b"") -> None:
        """Send a frame, or as much of it as goes now; ``body`` stays as it is until the rest is gone. Raises LineError."""
        if self.queued + len(body) > _MAX_QUEUED_BYTES:
            raise LineError("WORKER_HOST_LOST", "the other side does not read")
        for part in (_HEADER.pack(MAGIC, VERSION, kind, len(body)), body):
            if part:
                self._out.append(memoryview(part))
                self.queued += len(part)
        self._write()

    def send_json(self, kind: Kind, document: dict[str, Any]) -> None:
        """Send a JSON object. Raises LineError."""
        self.send(kind, json.dumps(document, separators=(",", ":"), allow_nan=False).encode())

    def wait(self, timeout_s: float, *others: int) -> None:
        """Wait until there is something to read here or from ``others``, or to send, or a heartbeat is due."""
        if self._socket.pending():
            return
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN | (select.POLLOUT if self._out else 0))
        for fd in others:
            poll.register(fd, select.POLLIN)
        poll.poll(max(0.0, min(timeout_s, self.heartbeat_s)) * 1e3)

    def exchange(self) -> list[Frame]:
        """Send what waits, keep the heartbeat, and return what has come. Raises LineError."""
        self._write()
        frames, heard = self._read()
        now = time.monotonic()
        if heard:
            self._heard_s = now
        elif now - self._heard_s > self._silence_s:
            raise LineError("WORKER_HOST_LOST", f"nothing was heard for {self._silence_s:g} s")
        if not self._out and now - self._sent_s >= self.heartbeat_s:
            self.send(Kind.HEARTBEAT)
        return frames

    def finish(self, timeout_s: float = 1.0) -> None:
        """Send what waits, let the other side close, and close; what still comes is not looked at, but read.

        A connection that is closed with bytes unread is reset, and what was sent last may not arrive.
        """
        end_s = time.monotonic() + timeout_s
        with contextlib.suppress(LineError, OSError):
            while time.monotonic() < end_s:
                self._write()
                self.wait(0.1)
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    if not self._socket.recv(DATA_BYTES):
                        break
        self.close()

    def close(self) -> None:
        """Close at once."""
        self._socket.close()

    def _write(self) -> None:
        while self._out:
            try:
                count = self._socket.send(self._out[0])
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            except OSError as e:
                raise _lost(e) from e
            self._sent_s = time.monotonic()
            self.queued -= count
            if count == len(self._out[0]):
                self._out.popleft()
            else:
                self._out[0] = self._out[0][count:]

    def _read(self) -> tuple[list[Frame], bool]:
        frames: list[Frame] = []
        budget = _READ_BYTES
        while budget > 0:
            if self._filled < len(self._body):
                count = self._receive(may_end=bool(frames))  # what came before the end counts; the end is met again
                if count == 0:
                    break
                self._filled += count
                budget -= count
            if self._filled == len(self._body):
                self._complete(frames)
        return frames, budget < _READ_BYTES

    def _receive(self, *, may_end: bool) -> int:
        """Return how many bytes came; 0 = none are there. Raises LineError at the end, unless it ``may_end``."""
        try:
            count = self._socket.recv_into(memoryview(self._body)[self._filled :])
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError as e:
            if may_end:
                return 0
            raise _lost(e) from e
        if count == 0 and not may_end:
            raise LineError("WORKER_HOST_LOST", "the connection was closed")
        return count

    def _complete(self, frames: list[Frame]) -> None:
        """A header, or a frame's body, is there."""
        if self._kind is None:
            self._kind, length = self._checked(self._body)
            self._body = self._kept.get(self._kind) or bytearray(length)
        else:
            self._greeted = True
            if self._kind is not Kind.HEARTBEAT:
                frames.append((self._kind, self._body))
            self._kind, self._body = None, bytearray(_HEADER.size)
        self._filled = 0

    def _checked(self, header: bytearray) -> tuple[Kind, int]:
        magic, version, number, length = _HEADER.unpack(header)
        if magic != MAGIC or version != VERSION:
            raise broken(f"no frame of version {VERSION}: {bytes(header[:6])!r}")
        try:
            kind = Kind(number)
        except ValueError:
            raise broken(f"no frame is of kind {number}") from None
        exact = kind in (Kind.OBSERVATION, Kind.CHUNK)
        if length > self._limits[kind] or (exact and (length == 0 or length != self._limits[kind])):
            raise broken(f"a frame {kind.name} of {length} bytes, not {self._limits[kind]}")
        return kind, length


def _lost(error: OSError) -> LineError:
    """TLS that fails is a refusal: in version 1.3 a client hears of it when it reads."""
    if _is_refusal(error):
        return LineError("WORKER_HOST_REFUSED", f"the handshake failed: {error.reason or error}")
    return LineError("WORKER_HOST_LOST", str(error.strerror or error))


def _is_refusal(error: Exception) -> TypeGuard[ssl.SSLError]:
    """A connection that only ends is none: what forwards to a host that is away accepts it and closes it."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))


def tls_context(folder: str, *, server: bool) -> ssl.SSLContext:
    """Return a context for mutual TLS 1.3 from ``ca.pem``, ``cert.pem`` and ``key.pem``. Raises LineError WORKER_TLS_INVALID."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED  # a client also compares the name
    if not folder:
        raise LineError("WORKER_TLS_INVALID", "no folder with ca.pem, cert.pem and key.pem is named")
    try:
        context.load_verify_locations(Path(folder, "ca.pem"))
        context.load_cert_chain(Path(folder, "cert.pem"), Path(folder, "key.pem"), password="")  # never asks for one
    except (OSError, ValueError) as e:  # ssl.SSLError is an OSError
        raise LineError("WORKER_TLS_INVALID", f"{folder}: ca.pem, cert.pem or key.pem cannot be used: {e}") from e
    return context


def name_and_port(address: str) -> tuple[str, int]:
    """Return the parts of ``name:port``, of ``[::1]:port`` without the brackets. Raises LineError WORKER_HOST_INVALID."""
    name, _, port = address.rpartition(":")
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    if (
        not bare
        or (":" in bare and bare == name)
        or re.fullmatch("[0-9]{1,5}", port) is None
        or not 0 < int(port) < 65536
    ):
        raise LineError("WORKER_HOST_INVALID", f"worker_host {address!r} is not name:port")
    return bare, int(port)


def connect(address: str, folder: str) -> Line:
    """Connect to a host at ``name:port``, and wait for its greeting. Blocks.

    Raises LineError: WORKER_TLS_INVALID, WORKER_HOST_INVALID, WORKER_HOST_UNREACHABLE, WORKER_HOST_REFUSED, WORKER_HOST_LOST.
    """
    context, (name, port) = tls_context(folder, server=False), name_and_port(address)
    try:
        raw = socket.create_connection((name, port), CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as e:
        raise LineError("WORKER_HOST_UNREACHABLE", f"worker_host {address!r}: {e}") from e
    try:
        line = Line(context.wrap_socket(raw, server_hostname=name), CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as e:
        raw.close()
        code = "WORKER_HOST_REFUSED" if _is_refusal(e) else "WORKER_HOST_UNREACHABLE"
        raise LineError(code, f"worker_host {address!r}: {e}") from e
    try:
        line.greet()
    except LineError as e:
        line.close()
        raise LineError(e.code, f"worker_host {address!r}: {e.message}") from e
    return line
