# SPDX-License-Identifier: Apache-2.0
"""A static HTTP server of checkpoints: Range, ETag and If-Range, a bandwidth cap, and a record of every byte it has sent."""

from __future__ import annotations

import re
import select
import shutil
import socket
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from vla_checkpoint import load_manifest

_SLICE_BYTES = 16 * 1024
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_PAUSE_LIMIT_S = 20.0


@dataclass(frozen=True)
class Request:
    """One request: ``first`` is the byte from which it was answered, ``at_s`` seconds since 1970."""

    at_s: float
    path: str
    status: int
    first: int


@dataclass(frozen=True)
class Sent:
    """A piece of a body that was handed to the network; ``at_s`` seconds since 1970."""

    at_s: float
    path: str
    size: int


class CheckpointServer:
    """Serves a folder on 127.0.0.1 in threads of this process. Use as a context manager.

    Args:
        root: folder to serve.
        rate_bytes_s: largest rate of a connection [bytes/s].
    """

    def __init__(self, root: Path, rate_bytes_s: float) -> None:
        self.root, self.rate_bytes_s = root.resolve(), rate_bytes_s
        self._lock = threading.Lock()
        self._sent: list[Sent] = []
        self._requests: list[Request] = []
        self._pause_path, self._pause_at = "", 0
        self._paused, self._resumed, self.closing = threading.Event(), threading.Event(), threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="checkpoints", daemon=True
        )

    def __enter__(self) -> CheckpointServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self.resume()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def base_url(self) -> str:
        """URL of the folder, with a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    # -- what it has done ----------------------------------------------------------------------------------------------

    def served_bytes(self, path: str = "/", since_s: float = 0.0, until_s: float = float("inf")) -> int:
        """Body bytes sent in a span of time for a path, or for all paths below one that ends with a slash."""
        with self._lock:
            return sum(s.size for s in self._sent if _covers(path, s.path) and since_s <= s.at_s <= until_s)

    def requests(self, path: str = "/") -> list[Request]:
        """Requests for a path, or for all paths below one that ends with a slash."""
        with self._lock:
            return [request for request in self._requests if _covers(path, request.path)]

    # -- a moment in which nothing is under way ------------------------------------------------------------------------

    def pause_after(self, path: str, size: int) -> None:
        """Hold back what follows the first ``size`` bytes of a path, until :meth:`resume` (at most 20 s)."""
        self._paused.clear()
        self._resumed.clear()
        with self._lock:
            self._pause_path, self._pause_at = path, size

    def wait_paused(self, timeout_s: float) -> bool:
        """Wait until something is held back; false if that did not happen in time."""
        return self._paused.wait(timeout_s)

    def resume(self) -> None:
        """Go on sending."""
        with self._lock:
            self._pause_path = ""
        self._resumed.set()

    # -- for the handler -----------------------------------------------------------------------------------------------

    def file_of(self, path: str) -> Path | None:
        """Return the file that a request path names, if it is one below the root."""
        file = (self.root / path.split("?")[0].lstrip("/")).resolve()
        return file if file.is_relative_to(self.root) and file.is_file() else None

    def note_request(self, request: Request) -> None:
        """Take note of a request that is answered."""
        with self._lock:
            self._requests.append(request)

    def note_sent(self, path: str, size: int, at_s: float | None = None) -> None:
        """Take note of a piece of a body that was sent, now or at ``at_s``."""
        with self._lock:
            self._sent.append(Sent(time.time() if at_s is None else at_s, path, size))

    def pause_if_asked(self, path: str, position: int) -> None:
        """Wait here while what follows ``position`` is held back."""
        with self._lock:
            asked = path == self._pause_path and position >= self._pause_at
        if asked:
            self._paused.set()
            self._resumed.wait(_PAUSE_LIMIT_S)


def _covers(path: str, other: str) -> bool:
    return other.startswith(path) if path.endswith("/") else other == path


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that was killed is no error of the server
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _handler_of(server: CheckpointServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing: the demo's timeline is the log."""

        def do_GET(self) -> None:
            try:
                _reply(self, server)
            except ConnectionError:
                self.close_connection = True

    return Handler


def _reply(handler: BaseHTTPRequestHandler, server: CheckpointServer) -> None:
    file = server.file_of(handler.path)
    if file is None:
        server.note_request(Request(time.time(), handler.path, 404, 0))
        handler.send_error(404)
        return
    stat = file.stat()
    size, etag = stat.st_size, f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
    span = _span(handler.headers.get("Range", ""), handler.headers.get("If-Range", ""), etag, size)
    first, end = span or (0, size)
    status = 206 if span is not None else 200
    if first >= size > 0:
        status, end = 416, first
    server.note_request(Request(time.time(), handler.path, status, first))
    handler.send_response(status)
    handler.send_header("ETag", etag)
    handler.send_header("Accept-Ranges", "bytes")
    handler.send_header("Content-Type", "application/octet-stream")
    handler.send_header("Content-Length", str(end - first))
    if status == 206:
        handler.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
    elif status == 416:
        handler.send_header("Content-Range", f"bytes */{size}")
    handler.end_headers()
    if end > first:
        _send(handler, server, file, first, end)


def _span(wanted: str, condition: str, etag: str, size: int) -> tuple[int, int] | None:
    """First byte and end of the one range that is asked for; None: the whole file."""
    match = _RANGE.fullmatch(wanted)
    if match is None or condition not in ("", etag):
        return None
    last = int(match[2]) if match[2] else size - 1
    return int(match[1]), min(last + 1, size)


def _send(handler: BaseHTTPRequestHandler, server: CheckpointServer, file: Path, first: int, end: int) -> None:
    path, position, begun = handler.path.split("?")[0], first, time.monotonic()
    with file.open("rb") as source:
        source.seek(first)
        while position < end and not server.closing.is_set():
            server.pause_if_asked(path, position)
            if _is_gone(handler.connection):
                raise ConnectionAbortedError  # else a last piece would be counted that nobody can receive
            piece = source.read(min(_SLICE_BYTES, end - position))
            if not piece:
                break
            handler.wfile.write(piece)
            position += len(piece)
            server.note_sent(path, len(piece))
            ahead_s = (position - first) / server.rate_bytes_s - (time.monotonic() - begun)
            if ahead_s > 0:
                server.closing.wait(ahead_s)
    if position < end:
        handler.close_connection = True


def _is_gone(client: socket.socket) -> bool:
    """Whether the client has closed its end."""
    readable, _, _ = select.select([client], [], [], 0.0)
    return bool(readable) and client.recv(1, socket.MSG_PEEK) == b""


def publish(bundle_dir: Path, root: Path) -> str:
    """Lay a bundle out below ``root`` as a registry does; return its manifest's path there.

    A blob lies under the digest that the manifest promises, whatever its content is by now.
    """
    manifest = load_manifest(bundle_dir)
    place = root / manifest.name / manifest.version
    place.mkdir(parents=True)
    shutil.copyfile(bundle_dir / "manifest.json", place / "manifest.json")
    blobs = root / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for entry in manifest.files:
        if not (blobs / entry.sha256).exists():
            shutil.copyfile(bundle_dir / entry.path, blobs / entry.sha256)
    return (place / "manifest.json").relative_to(root).as_posix()
