# SPDX-License-Identifier: Apache-2.0
"""What the demonstration of the flywheel asks of its robots, over real services."""

from __future__ import annotations

import pytest
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters
from std_srvs.srv import Trigger

from vla_sim.demo.ros.background_node import BackgroundNode
from vla_sim.fleet.flywheel.ros.tasks import Tasks


class Robot(BackgroundNode):
    """Takes parameters, and lets nobody resume for a while: it sees some time later that motion is enabled."""

    def __init__(self, domain: int, refuses: int) -> None:
        super().__init__("robot", domain)
        self.calls: list[str] = []
        self._refuses = refuses
        self._node.create_service(SetParameters, "/arm_1/sim_robot/set_parameters", self._set)
        self._node.create_service(Trigger, "/arm_1/policy_node/resume", self._resume)

    def _set(self, request: SetParameters.Request, response: SetParameters.Response) -> SetParameters.Response:
        self.calls += [f"{p.name} {p.value.bool_value}" for p in request.parameters]
        response.results = [SetParametersResult(successful=True) for _ in request.parameters]
        return response

    def _resume(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self.calls.count("resume") >= self._refuses
        self.calls.append("resume")
        return response


@pytest.mark.parametrize("refuses", [0, 2])
def test_robots_that_wake_up_are_resumed_once_they_have_seen_it(ros_domain: int, refuses: int) -> None:
    with Robot(ros_domain, refuses) as robot, Tasks(ros_domain, ["arm_1"]) as tasks:
        tasks.sleep(True)
        assert robot.calls == ["motion_enabled False", "asleep True"]
        tasks.sleep(False)
        assert robot.calls[2:] == ["motion_enabled True", "asleep False", *["resume"] * (refuses + 1)]
