# SPDX-License-Identifier: Apache-2.0
"""The real robots of the demonstration: simulated arms on the nodes that a real arm runs: what their control loops did."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from vla_ota.msg import PolicyStatus

from vla_ros.stamps import to_seconds
from vla_sim.demo.ros.background_node import BackgroundNode
from vla_sim.fleet.demo.loops import Loop
from vla_sim.fleet.demo.versions import RATE_HZ
from vla_sim.witness import Late, between, machines_share

SENSOR_HOLD = "OBSERVATION_STALE"
"""The simulator's camera was late, which a busy machine does; it says nothing about the fleet."""
_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Arms(BackgroundNode):
    """Listens to the robots' policy nodes. Use as a context manager."""

    def __init__(self, domain: int, names: Sequence[str]) -> None:
        super().__init__("fleet_demo", domain)
        self._statuses: dict[str, list[PolicyStatus]] = {name: [] for name in names}
        for name, heard in self._statuses.items():
            self._node.create_subscription(PolicyStatus, f"/{name}/policy_node/status", heard.append, _QOS)

    def moving(self) -> dict[str, str]:
        """Return robot → version of those that move now."""
        last = {name: heard[-1] for name, heard in self._statuses.items() if heard}
        return {name: s.active_version for name, s in last.items() if s.state == PolicyStatus.STATE_RUNNING}

    def loops(self, late: Sequence[Late]) -> list[Loop]:
        """Return what each loop did; ``late``: the witness's late wake-ups [s since 1970 UTC]."""
        return [_loop(name, list(heard), late) for name, heard in self._statuses.items()]


def _loop(name: str, heard: Sequence[PolicyStatus], late: Sequence[Late]) -> Loop:
    moved = [i for i, status in enumerate(heard) if status.state == PolicyStatus.STATE_RUNNING]
    if not moved:
        return Loop(name, 0, 0, 0, 0, 0.0, {}, 0.0)
    span = heard[moved[0] :]
    machines, holds, silence_s = 0, dict[str, int](), 0.0
    for before, after in pairwise(span):
        begin_s, end_s = to_seconds(before.header.stamp), to_seconds(after.header.stamp)
        silence_s = max(silence_s, end_s - begin_s)
        machines += machines_share(
            after.missed_ticks - before.missed_ticks, 1.0 / RATE_HZ, between(late, begin_s, end_s)
        )
        held = after.state == PolicyStatus.STATE_HOLDING and before.state != PolicyStatus.STATE_HOLDING
        if held and after.hold_reason != SENSOR_HOLD:
            holds[after.hold_reason] = holds.get(after.hold_reason, 0) + 1

    def since(field: str) -> Any:
        return getattr(span[-1], field) - getattr(span[0], field)

    missed = since("missed_ticks")
    return Loop(
        name, since("ticks"), missed - machines, machines, since("starved_ticks"), span[-1].worst_late_ms, holds, silence_s
    )  # fmt: skip
