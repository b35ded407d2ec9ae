# SPDX-License-Identifier: Apache-2.0
"""The fleet server on a :class:`FastClock`, for the demonstration: the same application, the same parts, another clock."""

from __future__ import annotations

import argparse
from pathlib import Path

from vla_fleet.server.rooms import Rooms, Settings
from vla_fleet.server.run import run
from vla_sim.fleet.clock import FastClock


class _FastRooms(Rooms):
    """Heartbeats come in the network's time, not in the clock's: a robot is silent after three of them in that."""

    def __init__(self, settings: Settings) -> None:
        self._fast = FastClock.inherited()
        super().__init__(settings, self._fast)

    def online(self, last_seen_s: float) -> bool:
        return self._fast.wall(self._fast.now()) - self._fast.wall(last_seen_s) <= 3 * self.settings.heartbeat_s


def main() -> None:
    """Serve on a port of this machine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--heartbeat-s", type=float, required=True)
    given = parser.parse_args()
    run(given.data, "127.0.0.1", given.port, "", given.heartbeat_s, None, None, make_rooms=_FastRooms)


if __name__ == "__main__":
    main()
