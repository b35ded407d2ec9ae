# SPDX-License-Identifier: Apache-2.0
"""A fleet of 1,000 connected robots on one server: ``python -m benchmarks.fleet --out build/bench``.

The server is ``vla-fleet serve`` in a process of its own, as it comes: SQLite, one process. The robots are the real
``BridgeEngine`` on real WebSockets, with a simulated manager behind it that is done at once; so the time is the line's and the
server's. They run in a few processes on the same machine and take their share of its processors; their outboxes are in memory
(/dev/shm), because 1,000 robots do not share a disk. The floor is a bare ``websockets`` server that sends each connection a
message of the same size.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.processes import Host, cpu_s, resident
from benchmarks.results import Table, finish
from vla_fleet import protocol
from vla_fleet.client import Client
from vla_sim.bundle import NAME, SHIPPED_BUNDLE
from vla_sim.fleet.server import FleetServer

ROBOTS, PROCESSES = 1000, 4
HEARTBEAT_S, REST_S = 10.0, 40.0
_LIMIT_S = 300.0
_IN_MEMORY = Path("/dev/shm")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--robots", type=int, default=ROBOTS)
    options = parser.parse_args(arguments)
    machine = describe()
    way_back = Table(
        f"A rollback of {options.robots} connected robots",
        [
            ("connect_s", "all connected after [s]", ".1f"),
            ("last_robot_s", "last robot back after [s]", ".2f"),
            ("known_s", "server knows of all after [s]", ".2f"),
        ],
    )
    server = Table(
        f"The server, {options.robots} robots connected, a heartbeat every {HEARTBEAT_S:g} s",
        [("cpu", "processor [% of a core]", ".1f"), ("memory", "memory [MB]", ".0f")],
    )
    with tempfile.TemporaryDirectory(dir=_IN_MEMORY) as outboxes, tempfile.TemporaryDirectory() as data:
        way_back.row("bare websockets").add(**_floor(options.robots))
        _ours(options.robots, Path(data), Path(outboxes), way_back.row("vla-fleet serve"), server)
    settings = {"robots": options.robots, "processes": PROCESSES, "heartbeat_s": HEARTBEAT_S, "rest_s": REST_S}
    finish("fleet", options.out, machine, settings, [way_back, server])


def _floor(robots: int) -> dict[str, float]:
    order = protocol.Rollback(version="1.0.0", reason="asked for by admin")
    message = protocol.Command(id=f"c-{'0' * 16}", order=order).model_dump_json()
    with Host("benchmarks.bare_fleet", {"message": message}) as server:
        url = f"ws://127.0.0.1:{server.hear(30)['port']}"
        with _load([{"server": url, "tokens": ["x"] * (robots // PROCESSES), "folder": ""}] * PROCESSES) as robots_of:
            connect_s = _all(robots_of, "connect")
            begun_s = time.time()
            server.tell(do="send")
            last_s = max(answer["at_s"] for answer in _ask(robots_of, "back"))
            known_s = server.hear(_LIMIT_S)["at_s"]
    return {"connect_s": connect_s, "last_robot_s": last_s - begun_s, "known_s": known_s - begun_s}


def _ours(robots: int, data: Path, outboxes: Path, way_back: Any, rest: Table) -> None:
    with FleetServer(data / "server", HEARTBEAT_S) as server, server.client() as client:
        for version in ("1.0.0", "1.0.1"):
            client.publish(SHIPPED_BUNDLE, version=version)
        settings = list(_enrolled(client, robots, server.url, data, outboxes))
        empty = sum(resident(server.pid) or (0,))
        with _load(settings) as robots_of:
            connect_s = _all(robots_of, "connect")
            for version in ("1.0.0", "1.0.1"):
                _until_done(client, client.deploy(f"{NAME}@{version}", everyone=True))
            rest.row("no robots").add(memory=empty / 1e6)
            rest.row("at rest").add(**_at_rest(server.pid))
            begun_s = time.time()
            commands = client.rollback(everyone=True, reason="measured")
            last_s = max(answer["at_s"] for answer in _ask(robots_of, "back"))
            known_s = _until_done(client, commands)
            way_back.add(connect_s=connect_s, last_robot_s=last_s - begun_s, known_s=known_s - begun_s)
            rest.row("after the rollback").add(memory=sum(resident(server.pid) or (0,)) / 1e6)


def _enrolled(client: Client, robots: int, url: str, data: Path, outboxes: Path) -> Iterator[dict[str, Any]]:
    """Enrol the robots; yield the settings of each process of them."""

    def enrol(name: str) -> tuple[str, str]:
        return client.enrol(client.make_code(name))

    with ThreadPoolExecutor(8) as at_once:
        for process in range(PROCESSES):
            names = [f"robot-{process}-{number}" for number in range(robots // PROCESSES)]
            file = data / f"tokens-{process}.json"
            file.write_text(json.dumps(dict(at_once.map(enrol, names))))
            yield {"server": url, "tokens": str(file), "folder": str(outboxes)}


@contextmanager
def _load(settings: Sequence[dict[str, Any]]) -> Iterator[list[Host]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Host("benchmarks.fleet_robots", each)) for each in settings]


def _ask(robots_of: Sequence[Host], what: str) -> list[dict[str, Any]]:
    for host in robots_of:
        host.tell(do=what)
    return [host.hear(_LIMIT_S) for host in robots_of]


def _all(robots_of: Sequence[Host], what: str) -> float:
    """Ask every process for something; return how long the last one took [s]."""
    begun_s = time.time()
    return float(max(answer["at_s"] for answer in _ask(robots_of, what)) - begun_s)


def _until_done(client: Client, commands: Sequence[dict[str, Any]]) -> float:
    """Wait until every command is done; return when that was known [s since 1970 UTC]."""
    ids = [command["id"] for command in commands]
    ends: list[str] = []
    for standing in client.follow(ids, _LIMIT_S):
        ends = [command["state"] for command in standing]
    if set(ends) != {"DONE"}:
        raise RuntimeError(f"not every robot did it: { {state: ends.count(state) for state in set(ends)} }")
    return time.time()


def _at_rest(pid: int) -> dict[str, float]:
    before_s, begun_s = cpu_s(pid), time.monotonic()
    time.sleep(REST_S)
    share = (cpu_s(pid) - before_s) / (time.monotonic() - begun_s)
    return {"cpu": 100 * share, "memory": sum(resident(pid) or (0,)) / 1e6}


if __name__ == "__main__":
    main()
