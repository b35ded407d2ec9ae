# SPDX-License-Identifier: Apache-2.0
"""A static web server that knows ranges and never holds a file in memory: ``python sparse_server.py FOLDER``.

It says its port in one line, falls silent once at the byte of a file that a line on its standard input names (``PATH BYTE``), and
when that input ends it says how many bytes of each path it has sent.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_SLICE_BYTES = 4 << 20
FOLDER = Path(sys.argv[1]).resolve()
SENT: Counter[str] = Counter()
STALLS: dict[str, int] = {}
ENDED = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = (FOLDER / self.path.lstrip("/")).resolve()
        if not path.is_relative_to(FOLDER) or not path.is_file():
            self.send_error(404)
            return
        size, asked = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), int(asked[2]) + 1 if asked[2] else size) if asked else (0, size)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("ETag", f'"{path.name[:16]}"')
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        stall = STALLS.pop(self.path) if start <= STALLS.get(self.path, -1) < end else None
        try:
            with path.open("rb") as file:
                self._send(file.fileno(), start, end if stall is None else stall)
            if stall is not None:
                ENDED.wait()
        except ConnectionError:  # the client was killed
            self.close_connection = True

    def _send(self, file: int, start: int, end: int) -> None:
        while start < end:
            sent = os.sendfile(self.connection.fileno(), file, start, min(_SLICE_BYTES, end - start))
            start += sent
            SENT[self.path] += sent


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    for line in sys.stdin:
        path, size = line.split()
        STALLS[path] = int(size)
        print("noted", flush=True)
    print(json.dumps(SENT), flush=True)
    ENDED.set()


if __name__ == "__main__":
    main()
