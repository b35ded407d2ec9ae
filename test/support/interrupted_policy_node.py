"""policy_node that destroys the first QoS event of a subscription just before it is taken, as a cleanup on another thread may."""

from __future__ import annotations

from typing import Any

from rclpy.event_handler import EventHandler, QoSSubscriptionEventType

take, interrupted = EventHandler.take_data, []


def take_too_late(event: EventHandler) -> Any:
    if not interrupted and isinstance(event.event_type, QoSSubscriptionEventType):
        interrupted.append(event)
        event.destroy()
    return take(event)


EventHandler.take_data = take_too_late

from vla_policy_node.ros.policy_node import main  # noqa: E402

main()
