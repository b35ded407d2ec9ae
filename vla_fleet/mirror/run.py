# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet mirror``; without the server's rooms, whose import would take most of its start."""

from __future__ import annotations

from pathlib import Path

import uvicorn

from vla_fleet.errors import FleetError, InputError
from vla_fleet.mirror.app import create_app
from vla_fleet.serving import Server, configure_log, listen, name


def run(origin: str, data: Path, host: str, port: int, max_bytes: int) -> None:
    """Serve a mirror of ``origin`` until SIGINT or SIGTERM."""
    if not origin.startswith(("http://", "https://")):
        raise InputError("INPUT_INVALID", f"--origin: {origin!r} must begin with http:// or https://")
    with listen(host, port) as listener:
        try:
            app = create_app(origin, data, max_bytes)
        except OSError as e:
            raise FleetError("DATA_UNUSABLE", f"{data}: {e.strerror or e}; name a folder that can be written") from e
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        configure_log()
        where = f"http://{name(host)}:{listener.getsockname()[1]}"
        Server(config, f"vla-fleet mirrors {origin} at {where}").run(sockets=[listener])
