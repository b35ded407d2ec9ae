# SPDX-License-Identifier: Apache-2.0
"""QoS profiles, each named once.

Subscriptions to other people's topics are volatile, whatever their publishers do: a transient_local subscription never
matches the volatile publishers that most stacks (and ``ros2 topic pub``) use, while a volatile one matches both.
"""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy


def _profile(depth: int, reliability: ReliabilityPolicy, durability: DurabilityPolicy) -> QoSProfile:
    return QoSProfile(depth=depth, reliability=reliability, durability=durability)


LATCHED = _profile(1, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)
"""Publisher of a status: a late subscriber gets the last one at once. Also for subscribing to a status of ours."""

LATCHED_EACH = _profile(50, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)
"""Subscription to a status of ours where the ones before the last count too: they name the episodes that were open."""

EVENTS = _profile(50, ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
"""Events, outcomes and scores that we publish: every one counts."""

OFFERS = _profile(10, ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
"""Subscription to ``model_update``."""

FLAGS = _profile(1, ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)
"""Subscription to ``motion_enabled`` and ``update_permitted``: matches every publisher, only the newest counts."""

SCORES = _profile(50, ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)
"""Subscription to scores, ours and other stacks'."""

SENSORS = _profile(5, ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)
"""Subscription to observations where the contract names nothing else."""
