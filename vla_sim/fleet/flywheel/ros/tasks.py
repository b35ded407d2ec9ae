# SPDX-License-Identifier: Apache-2.0
"""What the robots are asked to do: a parameter of each simulated robot."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters

from vla_sim.demo.processes import DemoError
from vla_sim.demo.ros.background_node import BackgroundNode

_ANSWER_S = 30.0


class Tasks(BackgroundNode):
    """Use as a context manager."""

    def __init__(self, domain: int, robots: Sequence[str]) -> None:
        super().__init__("flywheel_demo", domain)
        self._clients = {r: self._node.create_client(SetParameters, f"/{r}/sim_robot/set_parameters") for r in robots}

    def ask_for(self, colours: Sequence[str]) -> None:
        """Let every robot's tasks ask for these colours from the next one on. Raises DemoError if one does not answer."""
        kind = ParameterType.PARAMETER_STRING_ARRAY
        self._set("task_colours", ParameterValue(type=kind, string_array_value=list(colours)))

    def work(self, on: bool) -> None:
        """Let every robot work, or rest after its task. Raises DemoError if one does not answer."""
        self._set("run_tasks", ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=on))

    def _set(self, name: str, value: ParameterValue) -> None:
        request = SetParameters.Request(parameters=[Parameter(name=name, value=value)])
        deadline = time.monotonic() + _ANSWER_S
        for robot, client in self._clients.items():
            if not client.wait_for_service(max(0.0, deadline - time.monotonic())):
                raise DemoError(f"{robot} has no service to set its tasks")
            answer = client.call_async(request)
            while not answer.done() and time.monotonic() < deadline:
                time.sleep(0.05)
            result = answer.result() if answer.done() else None
            if result is None or not result.results[0].successful:
                raise DemoError(f"{robot} does not take its tasks: {result and result.results[0].reason}")
