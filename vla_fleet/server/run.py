# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet serve``."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn

from vla_fleet import protocol
from vla_fleet.errors import FleetError, InputError
from vla_fleet.server.app import create_app
from vla_fleet.server.line_protocol import LineProtocol
from vla_fleet.server.rooms import ADMIN_KEY, Rooms, Settings
from vla_fleet.serving import Server, configure_log, listen, name
from vla_fleet.storage.blobs import FilesBy

_SWITCH_INTERVAL_S = 0.0005
"""The database and forecasts work in threads; with the interpreter's 5 ms each statement waits so long for its turn."""


def run(
    data: Path,
    host: str,
    port: int,
    public_url: str,
    heartbeat_s: float,
    certificate: Path | None,
    certificate_key: Path | None,
    open_files: bool = False,
    max_episodes_per_robot: int = Settings.max_episodes_per_robot,
    database: str = "",
    bus: str = "",
    blobs: str = "",
    signing_keys: Path | None = None,
    files_by: FilesBy = FilesBy.SERVER,
    make_rooms: Callable[[Settings], Rooms] = Rooms,
) -> None:
    """Serve until SIGINT or SIGTERM. ``make_rooms`` puts the server's parts together."""
    with listen(host, port) as listener:
        url = public_url or f"{'https' if certificate else 'http'}://{name(host)}:{listener.getsockname()[1]}"
        settings = Settings(
            data=data,
            public_url=url,
            heartbeat_s=heartbeat_s,
            open_files=open_files,
            max_episodes_per_robot=max_episodes_per_robot,
            database=database,
            bus=bus,
            blobs=blobs,
            signing_keys=signing_keys,
            files_by=files_by,
        )
        _check(certificate, certificate_key)
        _check_files_by(settings)
        rooms = make_rooms(settings)
        asyncio.run(rooms.reach())
        config = uvicorn.Config(
            create_app(rooms),
            log_level="warning",
            ws=LineProtocol,
            ws_max_size=protocol.MAX_FRAME_BYTES,
            ws_ping_interval=None,  # robots ping, and one that says nothing is offline: see server/socket.py
            ssl_certfile=certificate,
            ssl_keyfile=certificate_key,
            timeout_graceful_shutdown=5,
        )
        configure_log()
        first = " of the server that started first" if database else ""
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        Server(config, f"vla-fleet serves {url}; the admin's key is in {data / ADMIN_KEY}{first}").run(
            sockets=[listener]
        )


def _check(certificate: Path | None, key: Path | None) -> None:
    if certificate is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        except OSError as e:  # ssl.SSLError is one
            raise FleetError("CERTIFICATE_INVALID", f"{certificate}, {key or 'no key'}: {e}") from e


def _check_files_by(settings: Settings) -> None:
    by, elsewhere = settings.files_by, bool(settings.blobs)
    if (by is FilesBy.LINKS and not elsewhere) or (by is FilesBy.X_ACCEL and elsewhere):
        what = "links lead to the object store of --blobs" if by is FilesBy.LINKS else "x-accel is for files in DATA"
        raise InputError(
            "INPUT_INVALID", f"--files-by {by.value}: {what}; use {'server' if not elsewhere else 'links'}"
        )
