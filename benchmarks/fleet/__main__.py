# SPDX-License-Identifier: Apache-2.0
"""A fleet from 100 to 10,000 robots on one server: ``python -m benchmarks.fleet --out build/bench``.

``--docs docs`` writes the figures into the documentation as well. The server is ``vla-fleet serve`` in a process of its own, as
it comes: SQLite, one process. The robots are connections of one other process that speak the real protocol
(``benchmarks/fleet/robots.py``). Beside it in the same run: a plain Starlette WebSocket echo, and HTTP polling.
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks.fleet import document, floor, origin, replicas
from benchmarks.fleet.chaos import SHARE, chaos
from benchmarks.fleet.picture import draw
from benchmarks.fleet.server import LoadHost, Measured, one_server
from benchmarks.machine import describe
from benchmarks.results import Table, finish
from vla_sim.fleet.server import FleetServer

SIZES, QUICK_SIZES = (100, 1000, 3000, 10_000), (100, 300)
FULL, QUICK = (15.0, 2200.0, 10.0), (3.0, 500.0, 2.0)
"""How long outcomes flow at each size [s], how many are offered [1/s], and time between two times that lines are cut [s]."""
ROUNDS = 4
REPLICAS_SIZE, ROBOTS_OF_BYTES = 3000, 1000
HEARTBEAT_S = 10.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--quick", action="store_true", help="small sizes: about a minute")
    parser.add_argument("--sizes", type=int, nargs="+", help="robots")
    parser.add_argument(
        "--replicas",
        action="store_true",
        help="also two servers with PostgreSQL and NATS, one killed; and bytes at the origin",
    )
    parser.add_argument("--docs", type=Path, help="folder of fleet.md: the figures and the curves go in there")
    options = parser.parse_args(arguments)
    quick = options.quick
    sizes = options.sizes or (QUICK_SIZES if quick else SIZES)
    plan = seconds, rate, chaos_s = QUICK if quick else FULL
    begun_s, machine = time.monotonic(), describe()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - begun_s:6.1f} s  {text}", flush=True)

    line, polls, faults = _line_table(rate), _polling_table(), _chaos_table(chaos_s)
    floor.echo(sizes, line, tell)
    with (
        one_server(HEARTBEAT_S) as server,
        LoadHost() as load,
        closing(Measured([server], load, seconds, rate, tell)) as measured,
    ):
        for size in sizes:
            line.row("vla-fleet serve", str(size)).add(**measured.grow(size))
        floor.polling(measured, seconds, polls, tell)

        def kill() -> None:
            server.kill()
            server.start()

        faults.row("one server, killed and started again", str(sizes[-1])).add(
            **chaos(measured, ROUNDS, chaos_s, rate / 2, kill, partial(_sqlite, server), tell)
        )
    if options.replicas:
        replicas.measure(min(sizes[-1], REPLICAS_SIZE), HEARTBEAT_S, plan, ROUNDS, line, faults, tell)
    tables = [line, polls, faults]
    if options.replicas:
        tables.append(origin.measure(QUICK_SIZES[0] if quick else ROBOTS_OF_BYTES, origin.SIZE, tell))
    line.note_ratio("kb", "vla-fleet serve", "plain echo", "memory")
    settings = {"sizes": list(sizes), "seconds": seconds, "offered_per_s": rate, "heartbeat_s": HEARTBEAT_S}
    finish("fleet", options.out, machine, settings, tables)
    draw(line.to_json(), options.out / "fleet.png")
    if options.docs:
        document.write(tables, machine, options.docs)


def _line_table(rate: float) -> Table:
    return Table(
        f"Robots on one server; outcomes and reads: {rate:.0f} outcomes a second are offered",
        [
            ("enrol_per_s", "enrolled [1/s]", ".0f"),
            ("connect_per_s", "connected [1/s]", ".0f"),
            ("kb", "memory each [kB]", ".1f"),
            ("cpu", "at rest [% of a core]", ".0f"),
            ("update_s", "update to all, last end stored [s]", ".2f"),
            ("update_cpu_ms", "processor each [ms]", ".2f"),
            ("rollback_s", "rollback of all, last end stored [s]", ".2f"),
            ("outcomes_per_s", "outcomes stored [1/s]", ".0f"),
            ("outcome_cpu_ms", "processor each [ms]", ".2f"),
            ("robot_p99_ms", "GET robot, p99 [ms]", ".0f"),
            ("overview_p99_ms", "GET overview, p99 [ms]", ".0f"),
        ],
    )


def _polling_table() -> Table:
    return Table(
        "'Is there anything new?' over kept HTTP connections, and how many robots that serves that ask so often",
        [
            ("per_s", "requests [1/s]", ".0f"),
            ("robots_30", "robots, every 30 s", ".0f"),
            ("robots_1800", "robots, every 1,800 s", ".0f"),
        ],
    )


def _chaos_table(every_s: float) -> Table:
    return Table(
        f"{SHARE:.0%} of the lines cut every {every_s:g} s, a server killed; orders and outcomes flow: both ends count the same",
        [
            ("dropped", "lines cut", ".0f"),
            ("outcomes", "outcomes", ".0f"),
            ("events", "events", ".0f"),
            ("orders_done", "orders done", ".0f"),
            ("again", "delivered again", ".0f"),
            ("back_s", "all back and stored after [s]", ".1f"),
        ],
    )


def _sqlite(server: FleetServer, query: str) -> int:
    with closing(sqlite3.connect(server.data / "fleet.db", timeout=30.0)) as database:
        return int(database.execute(query).fetchone()[0])


if __name__ == "__main__":
    main()
