# SPDX-License-Identifier: Apache-2.0
"""A web server that costs little: ``python -m benchmarks.file_server '{"folder"}'``, until its standard input ends."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from benchmarks.processes import say

_HUB = "/bench/policy/resolve/main"


class Handler(SimpleHTTPRequestHandler):
    """Lets the kernel send the files."""

    def translate_path(self, path: str) -> str:
        """Serve the same files as a repository of the Hugging Face hub."""
        return super().translate_path(path.removeprefix(_HUB))

    def end_headers(self) -> None:
        """Say what the hub's client wants to know of a file."""
        if self.path.startswith(_HUB):
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha1(self.path.encode()).hexdigest()}"')
        super().end_headers()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send a file's content."""
        outputfile.flush()
        self.connection.sendfile(source)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def main() -> None:
    """Serve a folder on a free port of this machine."""
    folder = json.loads(sys.argv[1])["folder"]
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(port=server.server_address[1])
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    main()
