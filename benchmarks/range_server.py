# SPDX-License-Identifier: Apache-2.0
"""A web server that gives ranges, so many bytes a second on each connection, as a CDN or a lossy link does.

``python -m benchmarks.range_server '{"folder", "rate_bytes_s", "latency_s"}'``, until its standard input ends. Rate 0: no bound.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.processes import say

_SLICE_BYTES = 256 << 10


def handler_of(folder: Path, rate_bytes_s: float, latency_s: float) -> type[BaseHTTPRequestHandler]:
    """Return what answers: ``latency_s`` after the request, then at that rate."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            """Answer with a file of the folder, or with the part of it that is asked for."""
            path = folder / Path(self.path).name
            size, asked = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start, end = (int(asked[1]), int(asked[2]) + 1 if asked[2] else size) if asked else (0, size)
            time.sleep(latency_s)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.send_header("ETag", '"bench"')
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            with path.open("rb") as file, suppress(ConnectionError):
                self._send(file.fileno(), start, end)

        def _send(self, file: int, start: int, end: int) -> None:
            begun, first = time.monotonic(), start
            while start < end:
                start += os.sendfile(self.connection.fileno(), file, start, min(_SLICE_BYTES, end - start))
                if rate_bytes_s:
                    time.sleep(max(0.0, (start - first) / rate_bytes_s - (time.monotonic() - begun)))

    return Handler


def main() -> None:
    """Serve on a free port of this machine."""
    settings = json.loads(sys.argv[1])
    handler = handler_of(Path(settings["folder"]), settings["rate_bytes_s"], settings["latency_s"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(port=server.server_address[1])
    sys.stdin.read()


if __name__ == "__main__":
    main()
