# SPDX-License-Identifier: Apache-2.0
"""What the robots are asked to do: a parameter of each simulated robot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from std_srvs.srv import Trigger

from vla_sim.demo.processes import DemoError
from vla_sim.demo.ros.background_node import BackgroundNode

_ANSWER_S, _AGAIN_S = 30.0, 0.5


class Tasks(BackgroundNode):
    """Use as a context manager."""

    def __init__(self, domain: int, robots: Sequence[str]) -> None:
        super().__init__("flywheel_demo", domain)
        self._clients = {r: self._node.create_client(SetParameters, f"/{r}/sim_robot/set_parameters") for r in robots}
        self._resumes = {r: self._node.create_client(Trigger, f"/{r}/policy_node/resume") for r in robots}

    def ask_for(self, colours: Sequence[str]) -> None:
        """Let every robot's tasks ask for these colours from the next one on. Raises DemoError if one does not answer."""
        kind = ParameterType.PARAMETER_STRING_ARRAY
        self._set("task_colours", ParameterValue(type=kind, string_array_value=list(colours)))

    def work(self, on: bool) -> None:
        """Let every robot work, or stop after its task. Raises DemoError if one does not answer."""
        self._set("run_tasks", ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=on))

    def sleep(self, on: bool) -> None:
        """Switch motion and sensors off, or on. Raises DemoError if a robot does not answer.

        A robot that may move again waits for a person, who sees that nobody is in the way, and resumes.
        """
        for name, value in (("motion_enabled", not on), ("asleep", on)):
            self._set(name, ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=value))
        if not on:
            for robot in self._clients:
                self._resume(robot)

    def _resume(self, robot: str) -> None:
        """Ask until the robot has seen that motion is enabled."""
        client, deadline = self._resumes[robot], time.monotonic() + _ANSWER_S
        while time.monotonic() < deadline:
            answer = self._call(client, Trigger.Request(), deadline)
            if answer is not None and answer.success:
                return
            time.sleep(_AGAIN_S)
        raise DemoError(f"{robot} does not resume: {answer and answer.message}")

    @staticmethod
    def _call(client: Any, request: Any, deadline: float) -> Any:
        """Return the answer of a service; None: there was none in time."""
        if not client.wait_for_service(max(0.0, deadline - time.monotonic())):
            return None
        answer = client.call_async(request)
        while not answer.done() and time.monotonic() < deadline:
            time.sleep(0.05)
        return answer.result() if answer.done() else None

    def _set(self, name: str, value: ParameterValue) -> None:
        request = SetParameters.Request(parameters=[Parameter(name=name, value=value)])
        deadline = time.monotonic() + _ANSWER_S
        for robot, client in self._clients.items():
            result = self._call(client, request, deadline)
            if result is None or not result.results[0].successful:
                raise DemoError(f"{robot} does not take its tasks: {result and result.results[0].reason}")
