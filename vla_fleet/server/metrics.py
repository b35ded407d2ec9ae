# SPDX-License-Identifier: Apache-2.0
"""What Prometheus scrapes at ``/metrics``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import prometheus_client as prometheus
from sqlalchemy import select

from vla_fleet.storage.tables import CommandRow

if TYPE_CHECKING:
    from vla_fleet.server.rooms import Rooms

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST


class Metrics:
    """Counts as things happen; how the fleet stands is read from the database at each scrape."""

    def __init__(self) -> None:
        self._registry = registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Histogram(
            "vla_fleet_request_seconds", "Time to answer a request.", ("method", "route", "status"), registry=registry
        )
        self.messages = prometheus.Counter(
            "vla_fleet_messages", "Messages of robots that were taken in.", ("type",), registry=registry
        )
        self.rejected = prometheus.Counter(
            "vla_fleet_lines_refused", "Lines of robots that were refused or closed.", ("code",), registry=registry
        )
        self._leads = prometheus.Gauge(
            "vla_fleet_leads", "Whether this server steers rollouts and experiments.", registry=registry
        )
        self._connected = prometheus.Gauge("vla_fleet_robots_connected", "Robots that are online.", registry=registry)
        self._robots = prometheus.Gauge(
            "vla_fleet_robots",
            "Robots by state of the manager and version that acts.",
            ("state", "version"),
            registry=registry,
        )
        self._commands = prometheus.Gauge(
            "vla_fleet_commands_open", "Commands that robots have not finished.", ("type",), registry=registry
        )

    async def text(self, rooms: Rooms) -> bytes:
        """Return all of it as Prometheus reads it."""
        robots = await rooms.directory.robots()
        async with rooms.database.begin() as session:
            orders = (await session.scalars(select(CommandRow.order).where(CommandRow.final.is_(False)))).all()
        self._leads.set(rooms.leader.leading)
        self._connected.set(sum(rooms.online(robot.last_seen_s) for robot in robots))
        states: Counter[tuple[str, ...]] = Counter(
            (r.status.get("state", ""), r.status.get("active_version", "")) for r in robots
        )
        _show(self._robots, states)
        types: Counter[tuple[str, ...]] = Counter((str(order["type"]),) for order in orders)
        _show(self._commands, types)
        return prometheus.generate_latest(self._registry)


def _show(gauge: prometheus.Gauge, counts: Mapping[tuple[str, ...], int]) -> None:
    gauge.clear()
    for labels, count in counts.items():
        gauge.labels(*labels).set(count)
