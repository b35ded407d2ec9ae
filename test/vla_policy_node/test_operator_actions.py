# SPDX-License-Identifier: Apache-2.0
"""What an operator sends becomes one action in the contract's channels and units."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from support.control_rig import contract_text

from vla_policy_node.contract.model import Contract, parse_contract
from vla_policy_node.errors import ObservationError
from vla_policy_node.operator_actions import OperatorActions, operator_topic

OUTPUTS = """actions:
  action:
    channel: {topic: /arm/joint_trajectory, type: trajectory_msgs/msg/JointTrajectory}
    select: [position.a]
  action.gripper:
    channel: {topic: gripper, type: std_msgs/msg/Float64}
safety:"""


@pytest.fixture
def contract() -> Contract:
    text = contract_text()
    begin, end = text.index("actions:"), text.index("safety:")
    return parse_contract(text[:begin] + OUTPUTS + text[end + len("safety:") :])


def trajectory(*positions: float) -> SimpleNamespace:
    points = [SimpleNamespace(positions=list(positions), velocities=[], effort=[])] if positions else []
    return SimpleNamespace(joint_names=["other", "a"][2 - len(positions) if positions else 0 :], points=points)


def test_the_parts_of_an_action_come_on_the_robots_own_topics_below_operator(contract: Contract) -> None:
    assert [operator_topic(output) for output in contract.outputs] == [
        "operator/arm/joint_trajectory",
        "operator/gripper",
    ]
    handed_over: list[tuple[np.ndarray, int]] = []
    actions = OperatorActions(contract, lambda action, received_ns: handed_over.append((action, received_ns)))
    actions.receive(0, trajectory(9.0, math.pi / 2), 100)
    assert not handed_over, "the gripper's part is missing"
    actions.receive(1, SimpleNamespace(data=0.3), 300)
    actions.receive(0, trajectory(9.0, math.pi), 200)
    assert [received_ns for _, received_ns in handed_over] == [100, 200], "an action is as old as its oldest part"
    assert handed_over[0][0] == pytest.approx([math.pi / 2, 0.3]) and handed_over[1][0] == pytest.approx([math.pi, 0.3])


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (trajectory(), "OBSERVATION_FIELD_MISSING"),
        (trajectory(9.0, math.nan), "OBSERVATION_NOT_FINITE"),
        (SimpleNamespace(joint_names=["b"], points=trajectory(1.0).points), "OBSERVATION_FIELD_MISSING"),
    ],
)
def test_a_message_that_is_no_action_is_refused_and_the_one_before_ages(
    contract: Contract, message: SimpleNamespace, code: str
) -> None:
    handed_over: list[int] = []
    actions = OperatorActions(contract, lambda action, received_ns: handed_over.append(received_ns))
    actions.receive(0, trajectory(9.0, 1.0), 100)
    with pytest.raises(ObservationError) as e:
        actions.receive(0, message, 200)
    assert e.value.code == code
    actions.receive(1, SimpleNamespace(data=0.3), 300)
    assert handed_over == [100]
