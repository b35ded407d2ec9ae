# SPDX-License-Identifier: Apache-2.0
"""QoS profiles, each named once.

Subscriptions to other people's topics are volatile, whatever their publishers do: a transient_local subscription never
matches the volatile publishers that most stacks (and ``ros2 topic pub``) use, while a volatile one matches both.
"""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy


def profile(reliability: str, durability: str, depth: int) -> QoSProfile:
    """Return the profile that a contract names, for example ``best_effort``, ``volatile``, 5."""
    return QoSProfile(
        depth=depth, reliability=ReliabilityPolicy[reliability.upper()], durability=DurabilityPolicy[durability.upper()]
    )


LATCHED = profile("reliable", "transient_local", 1)
"""Publisher of a status: a late subscriber gets the last one at once. Also for subscribing to a status of ours."""

LATCHED_EACH = profile("reliable", "transient_local", 50)
"""Subscription to a status of ours where the ones before the last count too: they name the episodes that were open."""

EVENTS = profile("reliable", "volatile", 50)
"""Events, outcomes and scores that we publish: every one counts."""

OFFERS = profile("reliable", "volatile", 10)
"""Subscription to ``model_update``."""

FLAGS = profile("best_effort", "volatile", 1)
"""Subscription to ``motion_enabled`` and ``update_permitted``: matches every publisher, only the newest counts."""

SCORES = profile("best_effort", "volatile", 50)
"""Subscription to scores, ours and other stacks'."""

SENSORS = profile("best_effort", "volatile", 5)
"""Subscription to observations where the contract names nothing else."""
