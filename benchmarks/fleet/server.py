# SPDX-License-Identifier: Apache-2.0
"""What is measured of one server, or of several on one database: it is filled with robots, and measured at each size."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.fleet.reads import Reads
from benchmarks.processes import Host, cpu_s, resident
from vla_sim.bundle import NAME, SHIPPED_BUNDLE
from vla_sim.fleet.server import FleetServer

_LIMIT_S = 300.0
_KEYS, _ENROLLING = 8, 32
Progress = Callable[[str], None]


class LoadHost:
    """The load client, which does several things at the same time."""

    def __init__(self) -> None:
        self._host = Host("benchmarks.fleet.load", {})
        self._numbers = itertools.count()
        self._answers: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> LoadHost:
        return self

    def __exit__(self, *_: object) -> None:
        self._host.kill()
        self._host.close()

    def begin(self, do: str, **settings: Any) -> int:
        """Ask for something; return the number under which :meth:`end` has the answer."""
        number = next(self._numbers)
        self._host.tell(do=do, number=number, **settings)
        return number

    def end(self, number: int) -> dict[str, Any]:
        """Wait for an answer."""
        while number not in self._answers:
            answer = self._host.hear(_LIMIT_S)
            self._answers[answer.pop("number")] = answer
        return self._answers.pop(number)

    def ask(self, do: str, **settings: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer."""
        return self.end(self.begin(do, **settings))


class Measured:
    """Servers of one fleet, and the robots of ``load`` on them.

    Args:
        servers: started; the first one takes orders and is read from.
        load: their robots.
        seconds: how long outcomes flow at each size.
        rate: outcomes a second that are offered.
        tell: gets a line for each step.
    """

    def __init__(
        self, servers: Sequence[FleetServer], load: LoadHost, seconds: float, rate: float, tell: Progress
    ) -> None:
        self.servers, self.load, self._seconds, self._rate, self._tell = servers, load, seconds, rate, tell
        self.client = servers[0].client()
        # each key has its own limit of requests
        self._keys = [self.client.make_key(f"bench-{number}", "admin") for number in range(_KEYS)]
        self._viewer = self.client.make_key("reads", "viewer")
        self._robots: list[str] = []
        self._empty = self.memory()
        for patch in range(2):
            self.client.publish(SHIPPED_BUNDLE, version=f"1.0.{patch}")
        self._versions = itertools.cycle(f"{NAME}@1.0.{patch}" for patch in range(2))

    def close(self) -> None:
        """Close the connection that orders went over."""
        self.client.close()

    def memory(self) -> int:
        """Return the servers' anonymous memory [bytes]."""
        return sum((resident(server.pid) or (0,))[0] for server in self.servers)

    def cpu_s(self) -> float:
        """Return the processor time that the servers have used [s]."""
        return sum(cpu_s(server.pid) for server in self.servers)

    def grow(self, size: int) -> dict[str, float]:
        """Enrol and connect robots until there are ``size``; then measure."""
        figures = self._connect(size)
        figures |= self._update(size)
        figures |= self._roll_back(size)
        return figures | self._outcomes()

    def manifest_url(self) -> str:
        """Return where a robot that has no line would ask."""
        return f"{self.servers[0].url}/files/{NAME}/1.0.0/manifest.json"

    def _connect(self, size: int) -> dict[str, float]:
        names = [f"robot-{number}" for number in range(len(self._robots), size)]
        more = len(names)
        enrol_s = self.load.ask(
            "enrol", server=self.servers[0].url, keys=self._keys * (_ENROLLING // _KEYS), names=names
        )["seconds"]
        self._robots += names
        self._tell(f"{size} robots: enrolled {more / enrol_s:.0f}/s")
        connect_s = self.load.ask("connect", servers=[server.url for server in self.servers])["seconds"]
        time.sleep(2.0)
        at_rest = self._at_rest()
        per_s, kb = more / connect_s, (self.memory() - self._empty) / size / 1000
        self._tell(f"{size} robots: connected {per_s:.0f}/s, {kb:.1f} kB each, {at_rest:.0f} % of a core at rest")
        return {"enrol_per_s": more / enrol_s, "connect_per_s": per_s, "kb": kb, "cpu": at_rest}

    def _at_rest(self) -> float:
        before_s, begun_s = self.cpu_s(), time.monotonic()
        time.sleep(max(3.0, self._seconds / 2))
        return 100 * (self.cpu_s() - before_s) / (time.monotonic() - begun_s)

    def _reads(self) -> Reads:
        return Reads(self.servers[0].url, self._viewer, self._robots[:100])

    def order_all(self, *, back: bool) -> None:
        """Order all robots to go back, or to install the other version."""
        if back:
            self.client.rollback(everyone=True, reason="measured")
        else:
            self.client.deploy(next(self._versions), everyone=True)

    def _update(self, size: int) -> dict[str, float]:
        ends = self.load.begin("orders", type="MODEL_UPDATE", count=size)
        begun_s, used_s = time.time(), self.cpu_s()
        self.order_all(back=False)
        ordered_s = time.time() - begun_s
        last_s = self.load.end(ends)["last_s"] - begun_s
        used_ms = 1000 * (self.cpu_s() - used_s) / size
        self._tell(
            f"{size} robots: the end of an update of all was stored after {last_s:.2f} s, {used_ms:.2f} ms of processor each"
        )
        return {"ordered_s": ordered_s, "update_s": last_s, "update_cpu_ms": used_ms}

    def _roll_back(self, size: int) -> dict[str, float]:
        ends = self.load.begin("orders", type="ROLLBACK", count=size)
        begun_s = time.time()
        self.order_all(back=True)
        last_s = self.load.end(ends)["last_s"] - begun_s
        self._tell(f"{size} robots: the end of a rollback of all was stored after {last_s:.2f} s")
        return {"rollback_s": last_s}

    def _outcomes(self) -> dict[str, float]:
        used_s = self.cpu_s()
        with self._reads() as reads:
            found = self.load.ask("play", rate=self._rate, seconds=self._seconds)
        self.load.ask("settle")
        used_ms = 1000 * (self.cpu_s() - used_s) / (self._rate * self._seconds)
        figures = {"outcomes_per_s": found["per_s"], "outcome_cpu_ms": used_ms, **reads.p99_ms()}
        self._tell(", ".join(f"{name} {value:.1f}" for name, value in figures.items()))
        return figures


@contextmanager
def one_server(heartbeat_s: float) -> Iterator[FleetServer]:
    """Give a server as it comes: one process, SQLite."""
    with tempfile.TemporaryDirectory() as folder, FleetServer(Path(folder) / "server", heartbeat_s) as server:
        yield server
