# SPDX-License-Identifier: Apache-2.0
"""A web server that costs little: ``python -m benchmarks.file_server '{"folder"}'``, until its standard input ends."""

from __future__ import annotations

import json
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from benchmarks.processes import say


class Handler(SimpleHTTPRequestHandler):
    """Lets the kernel send the files."""

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
