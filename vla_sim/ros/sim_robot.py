# SPDX-License-Identifier: Apache-2.0
"""``sim_robot``: the simulated arm with the topics of a real one, and somebody who gives it tasks.

Topics (relative): publishes ``joint_states``, ``camera/image_raw``, ``motion_enabled``; subscribes
``forward_position_controller/commands`` as ros2_control's forward_command_controller does. With ``run_tasks`` it opens and closes
episodes at ``policy_node/start_episode`` and ``policy_node/end_episode``. With ``operator_after_s`` an operator takes over those
that take too long: he commands on ``operator/forward_position_controller/commands``.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import SetBool
from vla_ota.srv import EndEpisode, StartEpisode

from vla_ros import qos
from vla_ros.diagnostics import OK, WARN, Diagnostics, Report
from vla_ros.executor import QuickCallbackGroup
from vla_ros.parameters import declare, on_live_change, refuse_unknown
from vla_ros.runtime import main as run_main
from vla_sim.arm import CONTROL_HZ, JOINT_NAMES, ROBOT_TYPE
from vla_sim.errors import CommandRefusedError
from vla_sim.robot import SimRobot
from vla_sim.settings import SimSettings
from vla_sim.task import TaskRules
from vla_sim.task_runner import Reply, TaskRunner

_TASKS_HZ = 25.0  # several looks at the robot while it dwells on a block
_MOTION_ENABLED_HZ = 10.0
_PUBLISHER_DEPTH = 10  # reliable, volatile: matches every subscription


class RosEpisodes:
    """The policy node's episode services as the task runner's port."""

    def __init__(self, node: Node, group: MutuallyExclusiveCallbackGroup) -> None:
        self._start = node.create_client(StartEpisode, "policy_node/start_episode", callback_group=group)
        self._end = node.create_client(EndEpisode, "policy_node/end_episode", callback_group=group)
        self._take_over = node.create_client(SetBool, "policy_node/take_over", callback_group=group)

    def available(self) -> bool:
        """Whether both services have a server now."""
        return bool(self._start.service_is_ready() and self._end.service_is_ready())

    def start(self, episode_id: str, instruction: str, timeout_s: float, reply: Reply) -> None:
        """Ask for an episode to be opened."""
        request = StartEpisode.Request(episode_id=episode_id, instruction=instruction, timeout_s=timeout_s)
        self._call(self._start, request, reply)

    def end(self, episode_id: str, success: bool, reply: Reply) -> None:
        """Say how the episode ended."""
        self._call(self._end, EndEpisode.Request(episode_id=episode_id, success=success, intervention=False), reply)

    def take_over(self, on: bool, reply: Reply) -> None:
        """Ask that an operator's actions be commanded; or the policy's again."""
        self._call(self._take_over, SetBool.Request(data=on), reply)

    @staticmethod
    def _call(client: Any, request: Any, reply: Reply) -> None:
        def answered(future: Future) -> None:
            response = None if future.cancelled() or future.exception() is not None else future.result()
            if response is not None:
                reply(response.success, getattr(response, "error_code", ""))

        client.call_async(request).add_done_callback(answered)


class SimRobotNode(Node):
    """Thin shell on :class:`SimRobot` and :class:`TaskRunner`."""

    def __init__(self) -> None:
        super().__init__("sim_robot")
        refuse_unknown(self, SimSettings)
        self._settings = declare(self, SimSettings)
        on_live_change(self, SimSettings, self._change)
        self._robot = SimRobot(self._settings.command_timeout_s)
        self._refused = 0

        self._joints = self.create_publisher(JointState, "joint_states", _PUBLISHER_DEPTH)
        self._camera = self.create_publisher(Image, "camera/image_raw", _PUBLISHER_DEPTH)
        self._motion = self.create_publisher(Bool, "motion_enabled", _PUBLISHER_DEPTH)
        diagnostics = Diagnostics(self, lambda: ROBOT_TYPE)
        diagnostics.add("arm", self._arm_report)
        diagnostics.add("tasks", self._task_report)
        topic = "forward_position_controller/commands"
        self.create_subscription(
            Float64MultiArray, topic, self._command, qos.SENSORS,
            callback_group=QuickCallbackGroup(), event_callbacks=diagnostics.subscription_events(topic),
        )  # fmt: skip

        self._steady = Clock(clock_type=ClockType.STEADY_TIME)  # its physics run in real time, whatever /clock says
        tasks = MutuallyExclusiveCallbackGroup()  # replies and ticks of the runner never run at the same time
        self._runner = TaskRunner(
            self._robot, RosEpisodes(self, tasks), boot_id=f"sim-{uuid.uuid4().hex[:8]}", seed=self._settings.seed,
            rules=TaskRules(timeout_s=self._settings.task_timeout_s), pause_s=self._settings.task_pause_s,
            operator_after_s=self._settings.operator_after_s, colours=self._settings.task_colours,
        )  # fmt: skip
        if self._settings.operator_after_s:
            self._operator = self.create_publisher(Float64MultiArray, f"operator/{topic}", _PUBLISHER_DEPTH)
            self._every(CONTROL_HZ, self._operate, tasks)
        self._every(_TASKS_HZ, self._tick_tasks, tasks)
        self._every(self._settings.joint_rate_hz, self._publish_joints, QuickCallbackGroup())
        self._every(self._settings.camera_rate_hz, self._publish_picture)
        self._every(_MOTION_ENABLED_HZ, lambda: self._motion.publish(Bool(data=self._settings.motion_enabled)))
        self._robot.start()

    def close(self) -> None:
        """Stop the physics."""
        self._robot.close()

    def _every(self, rate_hz: float, callback: Any, group: MutuallyExclusiveCallbackGroup | None = None) -> None:
        group = group or MutuallyExclusiveCallbackGroup()
        self.create_timer(1.0 / rate_hz, callback, callback_group=group, clock=self._steady)

    def _change(self, name: str, value: Any) -> None:
        self._settings = dataclasses.replace(self._settings, **{name: value})
        self._runner.colours = self._settings.task_colours
        self._robot.asleep = self._settings.asleep

    def _command(self, message: Float64MultiArray) -> None:
        try:
            self._robot.command(list(message.data))
        except CommandRefusedError as error:
            self._refused += 1
            self.get_logger().error(f"{error.code}: {error}", throttle_duration_sec=1.0)

    def _publish_joints(self) -> None:
        if self._settings.asleep:
            return
        arm = self._robot.snapshot().arm
        message = JointState(name=list(JOINT_NAMES), position=arm.position.tolist(), velocity=arm.velocity.tolist())
        message.header.stamp = self.get_clock().now().to_msg()
        self._joints.publish(message)

    def _publish_picture(self) -> None:
        if self._settings.asleep:
            return
        message = Image()
        message.header.stamp = self.get_clock().now().to_msg()  # before drawing: when it was seen
        picture = self._robot.picture()
        message.header.frame_id = "camera"
        message.height, message.width, channels = picture.shape
        message.encoding, message.is_bigendian, message.step = "rgb8", 0, message.width * channels
        message.data = picture.tobytes()
        self._camera.publish(message)

    def _tick_tasks(self) -> None:
        before = dataclasses.replace(self._runner.counts)
        if self._settings.run_tasks or not self._runner.idle:
            self._runner.tick(time.monotonic(), self._settings.motion_enabled)
        counts = self._runner.counts
        if counts != before and counts.started == before.started:
            self.get_logger().info(
                f"task {self._runner.episode_id} '{self._runner.instruction}': {self._runner.last_result}; "
                f"{counts.succeeded} done, {counts.timed_out} timed out, {counts.abandoned} abandoned"
            )

    def _operate(self) -> None:
        action = self._runner.operator_action()
        if action is not None:
            self._operator.publish(Float64MultiArray(data=action.tolist()))

    def _arm_report(self) -> Report:
        now = self._robot.snapshot()
        values = {
            "holding": now.holding,
            "sim_time_s": now.sim_time_s,
            "skipped_s": now.skipped_s,
            "refused_commands": self._refused,
        }
        if now.holding:
            return Report(WARN, "no commands, the arm stays where it is", values)
        return Report(OK, "following commands", values)

    def _task_report(self) -> Report:
        values = {"state": self._runner.state.value, **dataclasses.asdict(self._runner.counts)}
        return Report(OK, self._runner.instruction or "no task yet", values)


def main() -> None:
    """Run the node."""
    run_main(SimRobotNode, "sim_robot", "A simulated arm with camera and tasks, on a real arm's topics.", [SimSettings])


if __name__ == "__main__":
    main()
