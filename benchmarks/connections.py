# SPDX-License-Identifier: Apache-2.0
"""What ``fetch_connections`` is worth: ``python -m benchmarks.connections --out build/bench``.

A file comes into the store by one, two, four and eight connections: from a server without a bound, and from one that answers
after 0.3 s (three round trips of 100 ms, as TCP and TLS take) with 10 MB/s on each connection.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.processes import Host, say
from benchmarks.results import Table, finish

SIZE = 384 << 20
CONNECTIONS = (1, 2, 4, 8)
SERVERS = {"no bound": (0.0, 0.0), "10 MB/s a connection": (10e6, 0.3)}
COLUMNS = (("mb_s", "MB/s", ".0f"), ("cpu_s", "CPU, s", ".1f"), ("peak_mb", "peak resident memory, MB", ".0f"))


def fetch(settings: dict[str, Any]) -> None:
    """In a process of its own: fetch the file into a store, and say what that took."""
    import resource

    from vla_ota_manager.config import OtaConfig
    from vla_ota_manager.fetch.fetcher import Fetcher, Received
    from vla_ota_manager.fetch.source import parse_url
    from vla_ota_manager.store.filesystem import Filesystem
    from vla_ota_manager.store.store import Store

    base = f"http://127.0.0.1:{settings['port']}"
    config = OtaConfig(store_dir=settings["store"], allowed_sources=(base,), fetch_connections=settings["connections"])
    store = Store(Path(settings["store"]), Filesystem())
    store.open()
    begun, used = time.monotonic(), time.process_time()
    url = parse_url(f"{base}/file")
    Fetcher(config, store.blobs).blob([url], settings["sha256"], SIZE, Received(), lambda done: None, lambda: False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    say(seconds=time.monotonic() - begun, cpu_s=time.process_time() - used, peak_bytes=peak)
    store.close()


def measure(folder: Path, runs: int) -> Table:
    """Go through all numbers of connections at all servers, and that ``runs`` times."""
    data = os.urandom(SIZE)
    (folder / "file").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    del data
    table = Table("One file by several connections", COLUMNS)
    for run in range(runs):
        for name, (rate_bytes_s, latency_s) in SERVERS.items():
            server = {"folder": str(folder), "rate_bytes_s": rate_bytes_s, "latency_s": latency_s}
            with Host("benchmarks.range_server", server) as host:
                port = host.hear(30.0)["port"]
                for connections in CONNECTIONS:
                    store = folder / f"store-{run}-{port}-{connections}"
                    settings = {"port": port, "store": str(store), "connections": connections, "sha256": sha256}
                    with Host("benchmarks.connections", settings) as client:
                        found = client.hear(300.0)
                    figures = {"cpu_s": found["cpu_s"], "peak_mb": found["peak_bytes"] / 1e6}
                    table.row(f"{connections}", name).add(mb_s=SIZE / found["seconds"] / 1e6, **figures)
                    os.sync()
    return table


def main() -> None:
    """Measure, print, write; or do one fetch, for whoever measures."""
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        fetch(json.loads(sys.argv[1]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    machine = describe()
    with tempfile.TemporaryDirectory(prefix="vla_ota_bench_") as name:
        table = measure(Path(name), arguments.runs)
    finish("connections", arguments.out, machine, {"file_bytes": SIZE, "servers": list(SERVERS)}, [table])


if __name__ == "__main__":
    main()
