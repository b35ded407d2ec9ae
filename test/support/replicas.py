# SPDX-License-Identifier: Apache-2.0
"""Several servers of one fleet as processes, and simulated robots that go from one to another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from support.bundles import make_bundle
from support.fleet import FleetServer, enrolled
from support.rollouts import NEW, OLD
from support.waits import wait_for
from vla_fleet.client import Client
from vla_fleet.errors import FleetError
from vla_sim.fleet.simulated_robot import Behaviour, SimulatedRobot


class Replicas:
    """Servers ``a`` and ``b`` of one fleet. Use as a context manager."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self.folder = folder
        servers = [FleetServer(folder / name, options=options, environment=environment) for name in ("a", "b")]
        self.a, self.b = self.servers = servers
        self.robots: dict[str, SimulatedRobot] = {}
        self.tokens: dict[str, str] = {}

    def __enter__(self) -> Replicas:
        for server in self.servers:
            server.start()
        self.key = self.a.key
        return self

    def __exit__(self, *_: object) -> None:
        for robot in self.robots.values():
            robot.disconnect()
        for server in self.servers:
            server.stop()

    def client(self, server: FleetServer) -> Client:
        """Return an admin's client of one of the servers."""
        return server.client(self.key)

    def publish(self, client: Client) -> None:
        """Publish an old and a new version."""
        for seed, version in enumerate((OLD, NEW)):
            make_bundle(self.folder / version, version=version, seed=seed)
            client.publish(self.folder / version)

    def add(self, client: Client, name: str, server: FleetServer, old: float = 1.0, new: float = 1.0) -> SimulatedRobot:
        """Enrol a robot and connect it to a server."""
        behaviours = {OLD: Behaviour(old, 0.01), NEW: Behaviour(new, 0.01)}
        robot = self.robots[name] = SimulatedRobot(name, behaviours, episode_arms=True)
        self.tokens[name] = enrolled(client, name)
        self.move(name, server)
        return robot

    def move(self, name: str, server: FleetServer) -> None:
        """Let a robot connect to another server."""
        self.robots[name].disconnect()
        (self.folder / name).mkdir(exist_ok=True)
        self.robots[name].connect(server.url, self.tokens[name], self.folder / name)

    def leads(self, server: FleetServer) -> bool:
        """Whether a server steers rollouts."""
        headers = {"Authorization": f"Bearer {self.key}"}
        with suppress(httpx.HTTPError):
            return "vla_fleet_leads 1.0" in httpx.get(f"{server.url}/metrics", headers=headers, timeout=30).text
        return False

    def leader(self) -> FleetServer:
        """Return the server that steers rollouts, once one does."""
        found = wait_for(lambda: [server for server in self.servers if self.leads(server)], "a leader")
        return found[0]


def answer(ask: Any, what: str = "an answer") -> Any:
    """Return the first answer of a server that may not be there, or not be ready, just now."""

    def once() -> Any:
        with suppress(FleetError):
            return ask()
        return None

    return wait_for(once, what)


def finished(client: Client, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return commands once all have ended."""
    wait_for(lambda: all(command["final"] for command in client.commands(ids)), f"the end of {len(ids)} orders")
    return client.commands(ids)
