# SPDX-License-Identifier: Apache-2.0
"""``fleet_bridge`` of a real robot in the demonstration: the same node on the fleet's :class:`FastClock`."""

from __future__ import annotations

from vla_fleet_bridge.config import BridgeSettings
from vla_fleet_bridge.ros.fleet_bridge import FleetBridgeNode
from vla_ros.runtime import main as run_main
from vla_sim.fleet.clock import FastClock


def main() -> None:
    """Run the node."""
    clock = FastClock.inherited()
    run_main(
        lambda: FleetBridgeNode(clock.now),
        "fleet_bridge",
        "fleet_bridge on a faster clock.",
        [BridgeSettings],
        threads=4,
    )


if __name__ == "__main__":
    main()
