# SPDX-License-Identifier: Apache-2.0
"""A real fleet server as a process, and robots that have enrolled."""

from __future__ import annotations

from pathlib import Path

from vla_fleet.client import Client
from vla_sim.fleet.server import FleetServer

__all__ = ["TOP", "FleetServer", "enrolled"]

TOP = Path(__file__).resolve().parents[2]


def enrolled(client: Client, name: str, group: str = "default") -> str:
    """Enrol a robot and return its token."""
    return client.enrol(client.make_code(name, group))[1]
