# SPDX-License-Identifier: Apache-2.0
"""What a user would write by hand, measured beside the server: a plain WebSocket echo, and clients that ask over HTTP."""

from __future__ import annotations

import itertools
import time
import urllib.request
from collections.abc import Sequence

from benchmarks.fleet.server import LoadHost, Measured, Progress
from benchmarks.processes import Host, resident
from benchmarks.results import Table
from vla_fleet import protocol

_CLIENTS = 32
_SETTLE_S = 1.0


ECHOES = {"plain echo": True, "plain echo, no compression": False}
"""Whether uvicorn compresses, as it does unless told otherwise."""


def echo(sizes: Sequence[int], table: Table, tell: Progress) -> None:
    """Fill echo servers with sockets; then send all of them what an order takes."""
    for (way, compression), size in itertools.product(ECHOES.items(), sizes):
        with Host("benchmarks.fleet.echo", {"compression": compression}) as server, LoadHost() as load:
            url = str(server.hear(60.0)["url"])
            empty = _memory(server)
            connect_s = load.ask("echo", server=url, count=size)["seconds"]
            time.sleep(_SETTLE_S)
            kb = (_memory(server) - empty) / size / 1000
            ends, begun_s = load.begin("heard"), time.time()
            urllib.request.urlopen(urllib.request.Request(f"{url}/say", _order(), method="POST"), timeout=120.0).close()
            last_s = load.end(ends)["last_s"] - begun_s
            tell(f"{way}, {size}: {size / connect_s:.0f}/s connected, {kb:.1f} kB each, all heard after {last_s:.2f} s")
            table.row(way, str(size)).add(connect_per_s=size / connect_s, kb=kb, update_s=last_s)


def _memory(server: Host) -> int:
    return (resident(server.pid) or (0,))[0]


def _order() -> bytes:
    url = f"http://fleet.example/files/robot-1~1790000000~{'0' * 64}/reach_block/1.0.0/manifest.json"
    order = protocol.ModelUpdate(name="reach_block", version="1.0.0", manifest_url=url, manifest_sha256="0" * 64)
    return protocol.Command(id=f"c-{'0' * 16}", order=order).model_dump_json().encode()


def polling(measured: Measured, seconds: float, table: Table, tell: Progress) -> None:
    """Let clients ask whether there is anything new: of a plain server, and of ours with a robot's token."""
    with Host("benchmarks.fleet.echo", {}) as server, LoadHost() as load:
        url = f"{server.hear(60.0)['url']}/new"
        plain = load.ask("poll", url=url, clients=_CLIENTS, seconds=seconds)["per_s"]
    ours = measured.load.ask("poll", url=measured.manifest_url(), clients=_CLIENTS, seconds=seconds)["per_s"]
    for way, per_s in (("plain server, no token, no database", plain), ("vla-fleet serve, a robot's token", ours)):
        tell(f"polling, {way}: {per_s:.0f} requests/s")
        table.row(way).add(per_s=per_s, robots_30=30 * per_s, robots_1800=1800 * per_s)
