# SPDX-License-Identifier: Apache-2.0
"""examples/franka_fr3/hand_relay.py: one goal at a time, the newest position next, and none for a tremble."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from std_msgs.msg import Float64
from support.ros import RosHarness
from support.waits import wait_for
from vla_ota.action import RunPolicy

FILE = Path(__file__).parents[2] / "examples" / "franka_fr3" / "hand_relay.py"
spec = importlib.util.spec_from_file_location("hand_relay", FILE)
assert spec is not None and spec.loader is not None
hand_relay = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hand_relay)


class Hand:
    """An action server that ends a goal when it is let. Positions are texts: control_msgs is not part of this workspace."""

    def __init__(self, ros: RosHarness) -> None:
        self.goals: list[float] = []
        self.let = threading.Semaphore(0)
        self.server = ActionServer(
            ros.node, RunPolicy, "franka_gripper/gripper_action", self._move, callback_group=ReentrantCallbackGroup(),
            goal_callback=lambda _: GoalResponse.ACCEPT, cancel_callback=lambda _: CancelResponse.REJECT,
        )  # fmt: skip

    def _move(self, handle: Any) -> Any:
        self.goals.append(float(handle.request.instruction))
        self.let.acquire(timeout=20)
        handle.succeed()
        return RunPolicy.Result()


def test_the_hand_gets_one_goal_at_a_time_and_the_newest_position_next(ros_domain: int) -> None:
    with RosHarness(ros_domain, "franka_gripper", threads=4) as hand_ros, RosHarness(ros_domain, "policy") as policy:
        hand = Hand(hand_ros)
        make = lambda position: RunPolicy.Goal(instruction=f"{position:.4f}")  # noqa: E731
        relay = hand_relay.HandRelay(RunPolicy, make, context=policy.context)
        policy.on_executor(lambda: policy._executor.add_node(relay))
        publisher = policy.advertise(Float64, "hand_relay/finger_position")
        wait_for(relay._client.server_is_ready, "the hand's action")
        say = lambda position: publisher.publish(Float64(data=position))  # noqa: E731

        say(0.03)
        wait_for(lambda: hand.goals == [0.03], "the first goal")
        for position in (0.02, 0.01, 0.0305, -1.0):  # the hand is busy; the last is below what it can
            say(position)
        wait_for(lambda: relay._wanted == 0.0, "the newest position")
        assert hand.goals == [0.03]
        hand.let.release()
        wait_for(lambda: hand.goals == [0.03, 0.0], "the newest position as a goal")
        hand.let.release()
        say(0.0015)  # a tremble
        say(0.04)
        wait_for(lambda: hand.goals == [0.03, 0.0, 0.04], "the next goal")
        hand.let.release()
        wait_for(lambda: not relay._busy, "the last goal's end")
        policy.on_executor(lambda: policy._executor.remove_node(relay))
        relay.destroy_node()
