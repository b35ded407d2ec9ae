"""The node: topics of a real arm, commands that move it, parameters with ranges, and tasks that a policy node is asked to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, SetParameters
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Float64MultiArray
from support.ros import NodeProcess, RosHarness
from support.waits import wait_for
from vla_ota.srv import EndEpisode, StartEpisode

from vla_sim.arm import HOME_RAD, JOINT_NAMES

COMMANDS = "forward_position_controller/commands"


def test_it_looks_like_an_arm_and_follows_commands_under_any_namespace(ros_domain: int, tmp_path: Path) -> None:
    with (
        NodeProcess(
            "vla_sim.ros.sim_robot", ros_domain, tmp_path, namespace="/lab", parameters={"command_timeout_s": 1.0}
        ) as sim,
        RosHarness(ros_domain, namespace="/lab") as ros,
    ):
        joints = ros.subscribe(JointState, "joint_states")
        picture = ros.subscribe(Image, "camera/image_raw").wait()
        assert (picture.height, picture.width, picture.encoding, picture.step) == (64, 64, "rgb8", 192)
        assert len(picture.data) == 64 * 64 * 3
        assert len(set(picture.data)) > 20
        first = joints.wait()
        assert tuple(first.name) == JOINT_NAMES
        assert list(first.position) == pytest.approx(HOME_RAD, abs=0.01)
        assert len(first.velocity) == len(JOINT_NAMES)
        assert ros.subscribe(Bool, "motion_enabled").wait().data is True

        commands = ros.advertise(Float64MultiArray, COMMANDS)
        reports = ros.subscribe(DiagnosticArray, "/diagnostics")

        def refused() -> int:
            arms = (status for status in reports.last.status if status.name == "lab/sim_robot: arm")
            return next((int(v.value) for arm in arms for v in arm.values if v.key == "refused_commands"), 0)

        def refused_more_than(before: int, command: list[float]) -> bool:
            commands.publish(Float64MultiArray(data=command))
            return refused() > before

        reports.wait()
        wait_for(lambda: refused_more_than(0, [0.0, float("nan"), 0.0]), "the refusal of a number that is none")
        before = refused()
        wait_for(lambda: refused_more_than(before, [0.0]), "the refusal of one joint's command")
        target = [HOME_RAD[0] + 0.2, HOME_RAD[1], HOME_RAD[2]]

        def arrived() -> bool:
            commands.publish(Float64MultiArray(data=target))
            return abs(joints.last.position[0] - target[0]) < 0.02

        wait_for(arrived, "the arm to arrive")

        assert "COMMAND_REFUSED" in sim.log
        assert sim.stop() == 0


def test_it_gives_tasks_to_the_policy_node_and_says_how_they_ended(ros_domain: int, tmp_path: Path) -> None:
    starts: list[StartEpisode.Request] = []
    ends: list[EndEpisode.Request] = []

    def start(request: StartEpisode.Request, response: StartEpisode.Response) -> StartEpisode.Response:
        starts.append(request)
        response.success = True
        return response

    def end(request: EndEpisode.Request, response: EndEpisode.Response) -> EndEpisode.Response:
        ends.append(request)
        response.success = True
        return response

    parameters = {"task_timeout_s": 0.6, "task_pause_s": 0.0, "seed": 3}
    with (
        NodeProcess("vla_sim.ros.sim_robot", ros_domain, tmp_path, parameters=parameters) as sim,
        RosHarness(ros_domain) as ros,
    ):
        ros.subscribe(JointState, "joint_states").wait()  # it runs although nobody serves episodes yet
        ros.on_executor(lambda: ros.node.create_service(StartEpisode, "policy_node/start_episode", start))
        ros.on_executor(lambda: ros.node.create_service(EndEpisode, "policy_node/end_episode", end))
        wait_for(lambda: len(ends) >= 2, "two tasks to time out")
        assert [request.episode_id for request in ends[:2]] == [request.episode_id for request in starts[:2]]
        assert starts[0].episode_id != starts[1].episode_id
        assert not any(request.success or request.intervention for request in ends)
        assert all(request.instruction and request.timeout_s > 0.6 for request in starts)

        disable = Parameter(
            name="motion_enabled", value=ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=False)
        )
        request = SetParameters.Request(parameters=[disable])
        assert ros.call(SetParameters, "sim_robot/set_parameters", request).results[0].successful
        ros.subscribe(Bool, "motion_enabled").wait(lambda message: not message.data)
        begun = len(starts)  # an episode may be open: it stays so
        seconds = ros.subscribe(DiagnosticArray, "/diagnostics")
        wait_for(lambda: len(seconds.messages) >= 3, "as much time as three tasks would take")
        assert len(starts) <= begun + 1
        assert sim.stop() == 0


def test_parameters_are_described_and_out_of_range_ones_end_it_with_a_clear_line(
    ros_domain: int, tmp_path: Path
) -> None:
    names = [
        "joint_rate_hz",
        "camera_rate_hz",
        "command_timeout_s",
        "motion_enabled",
        "run_tasks",
        "task_timeout_s",
        "seed",
    ]
    with NodeProcess("vla_sim.ros.sim_robot", ros_domain, tmp_path) as sim, RosHarness(ros_domain) as ros:
        request = DescribeParameters.Request(names=names)
        descriptors = ros.call(DescribeParameters, "sim_robot/describe_parameters", request).descriptors
        assert all(descriptor.description for descriptor in descriptors)
        assert descriptors[2].floating_point_range[0].to_value == 10.0
        assert sim.stop() == 0
    with NodeProcess("vla_sim.ros.sim_robot", ros_domain, tmp_path, parameters={"joint_rate_hz": -1.0}) as broken:
        assert broken.wait() != 0
        assert "PARAMETER_INVALID" in broken.log
        assert "joint_rate_hz" in broken.log
