# SPDX-License-Identifier: Apache-2.0
"""Two servers on one PostgreSQL and one NATS, real ones from PyPI, as the tests start them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from benchmarks.fleet.chaos import chaos
from benchmarks.fleet.server import LoadHost, Measured, Progress
from benchmarks.results import Table
from vla_sim.fleet.server import FleetServer

WAY = "two servers, PostgreSQL, NATS"


@contextmanager
def _two_servers(heartbeat_s: float) -> Iterator[tuple[list[FleetServer], Callable[[str], int]]]:
    """Give the servers, and what answers a SQL query with one number."""
    # in test/, which `make bench-fleet` adds to the path and mypy does not read
    from support.servers import Nats, Postgres  # type: ignore[import-not-found]

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres, bus = stack.enter_context(Postgres()), stack.enter_context(Nats())
        options = ("--database", postgres.url("fleet"), "--bus", bus.url)
        made = [FleetServer(folder / name, heartbeat_s, options=options) for name in ("a", "b")]
        servers = [stack.enter_context(server) for server in made]

        def count(query: str) -> int:
            return int(postgres.query("fleet", query)[0][0])

        yield servers, count


def measure(
    size: int,
    heartbeat_s: float,
    plan: tuple[float, float, float],
    rounds: int,
    line: Table,
    faults: Table,
    tell: Progress,
) -> None:
    """Measure ``size`` robots on both servers; then cut lines and kill the second server, which stays away.

    Args:
        size: robots.
        heartbeat_s: of the servers [s].
        plan: how long outcomes flow [s], how many are offered [1/s], time between two times that lines are cut [s].
        rounds: how often lines are cut.
        line: gets the figures.
        faults: gets what was counted.
        tell: gets a line for each step.
    """
    seconds, rate, every_s = plan
    with ExitStack() as stack:
        servers, count = stack.enter_context(_two_servers(heartbeat_s))
        load = stack.enter_context(LoadHost())
        measured = stack.enter_context(closing(Measured(servers, load, seconds, rate, tell)))
        line.row(WAY, str(size)).add(**measured.grow(size))
        found = chaos(measured, rounds, every_s, rate / 2, servers[1].kill, count, tell)
        faults.row(f"{WAY}, one killed", str(size)).add(**found)
