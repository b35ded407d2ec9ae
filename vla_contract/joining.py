# SPDX-License-Identifier: Apache-2.0
"""From what was seen to a draft: a dataset's features are joined with a robot's topics where there is only one way to do it."""

from __future__ import annotations

from collections.abc import Mapping

from vla_contract.actions import action_names, draft_channels, draft_outputs
from vla_contract.draft import Draft, Said
from vla_contract.observations import draft_cameras, draft_numbers, draft_state
from vla_contract.seen import DatasetSeen, JointLimit, RobotSeen, joint_and_field


def join(
    robot: RobotSeen, dataset: DatasetSeen | None, limits: Mapping[str, JointLimit], namespace: str = "/"
) -> Draft:
    """Return the draft of a contract.

    Args:
        robot: what was seen of the robot; empty = nothing.
        dataset: what the policy is trained with.
        limits: of the robot description, by joint.
        namespace: of the policy; topics in it are named relative to it.
    """
    action = dataset.action if dataset else None
    names = action_names(action, robot.commands)
    count = action.shape[0] if action else len(names)
    outputs = draft_outputs(names, count, robot.commands, namespace)
    if dataset:
        numbers = [draft_numbers(feature, robot.states, namespace) for feature in dataset.numbers]
    else:
        state = draft_state(robot.states, [joint_and_field(name)[0] for name in names], namespace)
        numbers = [state] if state else []
    return Draft(
        robot_type=Said(dataset.robot_type or None, "dataset" if dataset.robot_type else "") if dataset else Said(),
        fps=Said(f"{dataset.fps:g}", "dataset") if dataset else Said(),
        observations=(*draft_cameras(robot.cameras, dataset.cameras if dataset else None, namespace), *numbers),
        outputs=tuple(outputs),
        channels=tuple(draft_channels(names, outputs, robot.commands, numbers, action, limits)),
        notes=tuple(f"also published: {t.name} [{t.type}] {t.rate_hz:.3g} Hz" for t in robot.others),
    )
