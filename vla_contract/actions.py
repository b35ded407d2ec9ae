# SPDX-License-Identifier: Apache-2.0
"""Commands from controllers: each number of the action goes to the one controller that takes its joint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vla_contract.draft import ChannelDraft, ObservationDraft, OutputDraft, Said
from vla_contract.matching import find_joint, relative
from vla_contract.seen import Command, Feature, JointLimit, joint_and_field
from vla_policy_node.contract import message_types as types

_MODES = {"velocity": "velocity", "effort": "effort"}


def action_names(action: Feature | None, commands: Sequence[Command]) -> tuple[str, ...]:
    """Return the names of the action's numbers, in order: the dataset's, or the controllers' joints; empty = not known."""
    if action is not None:
        return action.names
    joints = [joint for command in commands for joint in command.joints]
    return tuple(joints) if len(set(joints)) == len(joints) else ()


def draft_outputs(names: Sequence[str], count: int, commands: Sequence[Command], namespace: str) -> list[OutputDraft]:
    """Return the command topics; one that is still to be chosen where there are several ways."""
    joints = [joint_and_field(name) for name in names]
    taking = [_takers(joint, commands) for joint, _ in joints]
    if joints and all(len(takers) == 1 for takers in taking):
        chosen = [takers[0] for takers in taking]
        order = [command for i, command in enumerate(chosen) if i == 0 or chosen[i - 1] is not command]
        whole = all(len(c.joints) == chosen.count(c) for c in order)
        if whole and len({c.name for c in order}) == len(order):  # a message holds one piece of the action
            return [_output(c, [j for j, of in zip(joints, chosen, strict=True) if of is c], namespace) for c in order]
    unnamed = [c for c in commands if not c.joints]
    if len(commands) == 1 and unnamed:
        return [_output(unnamed[0], joints or [("", "")] * max(count, 1), namespace)]
    return [_open(joints, count, commands)]


def _takers(joint: str, commands: Sequence[Command]) -> list[Command]:
    return [c for c in commands if find_joint(joint, c.joints)]


def _output(command: Command, joints: Sequence[tuple[str, str]], namespace: str) -> OutputDraft:
    select = []
    for i, (joint, said) in enumerate(joints):
        found, field = find_joint(joint, command.joints), said or command.interface or "position"
        fields = types.OUTPUT_FIELDS[command.type]
        if fields is types.ELEMENT:
            place = command.joints.index(found) if found else i
            doubt = "" if found else f"; does {command.node} want them in this order?"
            select.append(Said(f"data.{place}", f"{joint or f'number {i}'}{doubt}"))
        elif fields is types.DATA:
            select.append(Said("data", joint))
        elif fields is types.JOINT_FIELD:
            select.append(Said(f"{field}.{found or joint}" if joint else None))
        else:
            select.append(Said(note=joint))
    return OutputDraft(Said(relative(command.name, namespace), command.node), Said(command.type), tuple(select))


def _open(joints: Sequence[tuple[str, str]], count: int, commands: Sequence[Command]) -> OutputDraft:
    taken = ", ".join(f"{c.name} [{c.type}]" for c in commands)
    note = f"one or several of {taken}; --commands TOPIC chooses" if commands else ""
    select = [Said(note=joint) for joint, _ in joints] or [Said(note=f"number {i}") for i in range(max(count, 1))]
    return OutputDraft(Said(note=note), Said(), tuple(select))


def draft_channels(
    names: Sequence[str],
    outputs: Sequence[OutputDraft],
    commands: Sequence[Command],
    observations: Sequence[ObservationDraft],
    action: Feature | None,
    limits: Mapping[str, JointLimit],
) -> list[ChannelDraft]:
    """Return a draft a number of the action."""
    count = sum(len(output.select) for output in outputs)
    selected = [s.value for o in observations for s in o.select if s.value]
    found = []
    for i in range(count):
        joint, said = joint_and_field(names[i]) if names else ("", "")
        interface = next((c.interface for c in commands if find_joint(joint, c.joints)), "") if joint else ""
        field = said or interface
        known = find_joint(joint, limits)
        limit = limits[known] if known else None
        found.append(
            ChannelDraft(
                name=Said(joint or None),
                unit=_unit(action, i, limit),
                mode=_mode(field, of_dataset=bool(said)),
                measured=None if field in _MODES else _measured(joint, selected),
                limit=limit,
                data=_range(action, i),
            )
        )
    return found


def _measured(joint: str, selected: Sequence[str]) -> Said:
    measured = {entry.partition(".")[2]: entry for entry in selected if entry.startswith("position.")}
    found = find_joint(joint, measured) if joint else None
    return Said(measured[found] if found else None)


def _mode(field: str, *, of_dataset: bool) -> Said:
    if field in _MODES:
        return Said(_MODES[field])
    if field == "position" and of_dataset:
        return Said("absolute", "the dataset's positions; relative if the policy was trained on changes of them")
    return Said()


def _unit(action: Feature | None, i: int, limit: JointLimit | None) -> Said:
    """The message's unit is known; the policy's is its dataset's, which says no unit anywhere."""
    if action is None:
        return (
            Said(limit.unit, "robot description")
            if limit
            else Said(note="rad for a joint that turns, m for one that slides")
        )
    data = _range(action, i)
    if data and limit:
        fits = limit.low - 0.1 <= action.low[i] and action.high[i] <= limit.high + 0.1
        verdict = (
            f"fits {limit.unit}"
            if fits
            else f"not {limit.unit}: deg (then apply: [rad2deg]), or LeRobot's -100 to 100?"
        )
        return Said(note=f"{data}: {verdict}")
    return Said(note=data)


def _range(action: Feature | None, i: int) -> str:
    if action is None or not action.low or not action.high:
        return ""
    return f"{action.low[i]:.4g} to {action.high[i]:.4g} in the data"
