# SPDX-License-Identifier: Apache-2.0
"""A static HTTP server of checkpoints for demo and tests: it misbehaves on demand and counts every byte it sends.

::

    with CheckpointServer(root) as server:
        publish_bundle(root, bundle_dir)
        server.behave("/blobs/", Behaviour(fail_after=1000), times=1)
        ... server.url("pick_place/1.0.0/manifest.json"), server.served["/blobs/sha256/…"]
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from vla_checkpoint import load_manifest

_SLICE_BYTES = 8192
_STALL_LIMIT_S = 300.0


@dataclass(frozen=True)
class Behaviour:
    """How replies to some paths differ from a proper static server's (which knows ranges, ETag and If-Range)."""

    rate_bytes_s: float = 0.0  # of the body; 0 = as fast as it goes
    fail_after: int | None = None  # cut the connection after so many body bytes
    silent_s: float = 0.0  # say nothing for so long before the head
    trickle_head_s: float = 0.0  # send a byte of an endless header so often, until the client has gone
    stall_after: int | None = None  # after so many body bytes, say nothing more (until the client gives up)
    status: int = 0  # reply with this status and no body
    retry_after: str = ""
    redirect: str = ""  # Location; with status 302
    ignore_range: bool = False
    part: int | None = None  # answer a range with at most so many bytes of it, and say so honestly
    content_range: str = ""  # instead of the true one
    content_encoding: str = ""
    content_length: int | None = None  # instead of the true one
    extra: bytes = b""  # sent behind the body
    chunked: bool = False  # no Content-Length
    body: bytes | None = None  # instead of the file's
    etag: str | None = None  # instead of the true one; empty = none


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # not the server's error: the client was killed
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class CheckpointServer:
    """Serves a folder on 127.0.0.1 in threads of this process. Use as a context manager.

    Args:
        root: folder to serve.
        usual: how it behaves where nothing else was ordered.
    """

    def __init__(self, root: Path, usual: Behaviour | None = None) -> None:
        self.root = root.resolve()
        self.served: Counter[str] = Counter()
        """Body bytes sent, by path."""
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Path and headers (in lower case) of every request."""
        self.usual = usual or Behaviour()
        self._sent: list[tuple[float, int]] = []
        self._behaviours: list[tuple[str, Behaviour, int]] = []
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> CheckpointServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)

    @property
    def base(self) -> str:
        """URL of the folder, without a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def url(self, path: str) -> str:
        """URL of a path below the folder."""
        return f"{self.base}/{path.lstrip('/')}"

    def behave(self, path_part: str, behaviour: Behaviour, *, times: int = -1) -> None:
        """Reply so to the next ``times`` requests (-1: all) of paths that contain ``path_part``; earlier orders go first."""
        with self._lock:
            self._behaviours.append((path_part, behaviour, times))

    def be_good(self) -> None:
        """Behave as usual again."""
        with self._lock:
            self._behaviours.clear()

    def sent_between(self, begin_s: float, end_s: float) -> int:
        """Body bytes sent between two times since 1970 [s]."""
        with self._lock:
            return sum(size for at_s, size in self._sent if begin_s <= at_s <= end_s)

    # -- for the handler -----------------------------------------------------------------------------------------------

    def file_of(self, path: str) -> Path | None:
        """Return the file that a request path names, if it is one below the root."""
        file = self.root / path.split("?")[0].lstrip("/")
        return file if file.resolve().is_relative_to(self.root) and file.is_file() else None

    def take(self, path: str) -> Behaviour:
        """Return how to answer a request."""
        with self._lock:
            for index, (part, behaviour, times) in enumerate(self._behaviours):
                if part in path:
                    if times == 1:
                        del self._behaviours[index]
                    elif times > 0:
                        self._behaviours[index] = (part, behaviour, times - 1)
                    return behaviour
        return self.usual

    def count(self, path: str, size: int) -> None:
        """Count bytes that are sent; a negative number takes back what could not be."""
        with self._lock:
            self.served[path] += size
            self._sent.append((time.time(), size))

    def note(self, path: str, headers: dict[str, str]) -> None:
        """Keep a request."""
        with self._lock:
            self.requests.append((path, headers))


def _handler_of(server: CheckpointServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.note(self.path, headers)
            behaviour = server.take(self.path)
            server.closing.wait(behaviour.silent_s)
            try:
                if behaviour.trickle_head_s:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
                while behaviour.trickle_head_s and not server.closing.wait(behaviour.trickle_head_s):
                    self.wfile.write(b"x")
                _reply(self, server, behaviour, headers)
            except ConnectionError:
                self.close_connection = True

    return Handler


def _reply(
    handler: BaseHTTPRequestHandler, server: CheckpointServer, behaviour: Behaviour, headers: dict[str, str]
) -> None:
    file = server.file_of(handler.path)
    if behaviour.status or behaviour.redirect or file is None:
        handler.send_response(302 if behaviour.redirect else behaviour.status or 404)
        for name, value in (("Location", behaviour.redirect), ("Retry-After", behaviour.retry_after)):
            if value:
                handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    data = file.read_bytes() if behaviour.body is None else behaviour.body
    etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"' if behaviour.etag is None else behaviour.etag
    asked = None if behaviour.ignore_range else _range(headers, etag, len(data))
    start, end = asked or (0, len(data))
    if start >= len(data) and start:
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(data)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    end = min(end, start + behaviour.part) if asked and behaviour.part else end
    body = data[start:end] + behaviour.extra
    handler.send_response(206 if asked else 200)
    if asked:
        true_range = f"bytes {start}-{end - 1}/{len(data)}"
        handler.send_header("Content-Range", behaviour.content_range or true_range)
    if etag:
        handler.send_header("ETag", etag)
    if behaviour.content_encoding:
        handler.send_header("Content-Encoding", behaviour.content_encoding)
    if behaviour.chunked:
        handler.send_header("Transfer-Encoding", "chunked")
    else:
        length = len(body) if behaviour.content_length is None else behaviour.content_length
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    _send(handler, server, behaviour, body)


def _send(handler: BaseHTTPRequestHandler, server: CheckpointServer, behaviour: Behaviour, body: bytes) -> None:
    begun, sent = time.monotonic(), 0
    stops = [stop for stop in (behaviour.fail_after, behaviour.stall_after) if stop is not None]
    end = min([len(body), *stops])
    while sent < end:
        data = body[sent : min(end, sent + _SLICE_BYTES)]
        server.count(handler.path, len(data))  # before a client has them: whoever got a byte finds it counted
        try:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if behaviour.chunked else data)
        except ConnectionError:
            server.count(handler.path, -len(data))
            raise
        sent += len(data)
        if behaviour.rate_bytes_s:
            ahead = sent / behaviour.rate_bytes_s - (time.monotonic() - begun)
            if ahead > 0 and server.closing.wait(ahead):
                return
    if behaviour.stall_after is not None:
        server.closing.wait(_STALL_LIMIT_S)
    if end < len(body) or behaviour.content_length is not None:
        handler.close_connection = True
    elif behaviour.chunked:
        handler.wfile.write(b"0\r\n\r\n")


def _range(headers: dict[str, str], etag: str, size: int) -> tuple[int, int] | None:
    """Return from where to where a part is asked for; None: all is."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
    if not match or headers.get("if-range", "") not in ("", etag):
        return None
    return int(match[1]), min(size, int(match[2]) + 1) if match[2] else size


def publish_bundle(root: Path, bundle_dir: Path) -> str:
    """Lay a bundle out as a registry does, below ``root``; return the path of its manifest there.

    A blob lies under the digest that the manifest promises, whatever its content is by now.
    """
    manifest = load_manifest(bundle_dir)
    place = root / manifest.name / manifest.version
    place.mkdir(parents=True)
    shutil.copyfile(bundle_dir / "manifest.json", place / "manifest.json")
    blobs = root / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for entry in manifest.files:
        shutil.copyfile(bundle_dir / entry.path, blobs / entry.sha256)
    return str((place / "manifest.json").relative_to(root))
