# SPDX-License-Identifier: Apache-2.0
"""Looks at a running robot; ROS is behind :class:`Graph`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from vla_contract.errors import DraftError
from vla_contract.seen import Camera, Command, JointLimit, Joints, RobotSeen, Topic
from vla_contract.urdf import parse_limits
from vla_doctor.seen import Endpoint, Samples, TopicSeen
from vla_policy_node.contract import message_types as types
from vla_policy_node.errors import ObservationError
from vla_policy_node.pictures import decode
from vla_ros.interfaces import UnknownTypeError

_NEAR_S = 0.5
"""Stamps that differ from ROS time by less may be used [s]."""
_FIRST_MESSAGE_S = 3.0
"""Longest wait for the first message of a topic that somebody publishes [s]."""


class Graph(Protocol):
    """The ROS graph; what each method does is said in ``vla_doctor/ros/doctor.py``."""

    def discover(self, expected: Collection[str]) -> None: ...  # noqa: D102
    def wait(self, seconds: float, done: Callable[[], bool] = ...) -> bool: ...  # noqa: D102
    def topics(self) -> list[tuple[str, list[str]]]: ...  # noqa: D102
    def topic(self, name: str, samples: Samples | None = None) -> TopicSeen: ...  # noqa: D102
    def parameters(self, full: str, names: list[str]) -> dict[str, Any] | None: ...  # noqa: D102
    def listen(self, name: str, kind: str, decode: Callable[[Any], object] | None = None) -> Samples: ...  # noqa: D102
    def listen_to_status(self, name: str, kind: str) -> Samples: ...  # noqa: D102


def look(graph: Graph, seconds: float, wanted: Sequence[str] = ()) -> tuple[RobotSeen, Mapping[str, JointLimit]]:
    """Return what the robot has, and the joint limits of its description (empty without one).

    Args:
        graph: where to look.
        seconds: how long topics are listened to [s].
        wanted: command topics to use; empty = all.

    Raises:
        DraftError: COMMANDS_UNKNOWN: nobody listens to a wanted topic.
    """
    graph.discover(())
    kinds = {name: kind for name, all_kinds in graph.topics() for kind in all_kinds}
    seen = {name: graph.topic(name) for name in kinds}
    listeners = _listeners(seen, wanted)
    heard = {name: samples for name, kind in kinds.items() if (samples := _listen(graph, kind, seen[name])) is not None}
    described = [n for n, kind in kinds.items() if n.endswith("/robot_description") and kind == "std_msgs/msg/String"]
    descriptions = [graph.listen_to_status(name, kinds[name]) for name in described]
    samples_of_all = [*heard.values(), *descriptions]  # a connection takes its time: the silence before it is nobody's
    graph.wait(_FIRST_MESSAGE_S, lambda: all(samples.arrivals_s for samples in samples_of_all))
    graph.wait(seconds)
    commands = [_command(graph, name, listener.type, listener.node) for name, listener in listeners.items()]
    cameras, states, others = [], [], []
    for name, samples in sorted(heard.items()):
        if name in listeners:
            continue
        topic = _topic(name, kinds[name], samples)
        if isinstance(topic, Camera):
            cameras.append(topic)
        elif isinstance(topic, Joints):
            states.append(topic)
        else:
            others.append(topic)
    limits: dict[str, JointLimit] = {}
    for name, samples in zip(described, descriptions, strict=True):
        limits.update(_limits(name, samples))
    return RobotSeen(tuple(cameras), tuple(states), tuple(others), tuple(commands)), limits


def _listen(graph: Graph, kind: str, topic: TopicSeen) -> Samples | None:
    """Listen to what an observation could be made of; the instruction is none that a robot measures."""
    if kind not in types.OBSERVATION_TYPES or kind == types.STRING or not topic.publishers:
        return None
    try:
        return graph.listen(topic.name, kind)
    except UnknownTypeError:  # its package is not installed here
        return None


def _limits(name: str, samples: Samples) -> Mapping[str, JointLimit]:
    try:
        return {} if samples.last is None else parse_limits(samples.last.data.encode())
    except DraftError as e:
        raise DraftError(e.code, f"{name}: {e}") from e


def _topic(name: str, kind: str, samples: Samples) -> Topic:
    rate, last = samples.rate_hz, samples.last
    stamped = bool(samples.ages_s) and not samples.unstamped and abs(statistics.median(samples.ages_s)) < _NEAR_S
    if kind == types.JOINT_STATE:
        joints = tuple(last.name[: len(last.position)]) if last is not None else ()
        return Joints(name, kind, rate, stamped, joints)
    if kind not in types.IMAGE_TYPES:
        return Topic(name, kind, rate, stamped)
    try:
        size, encoding = _picture(last)
    except ObservationError:  # a depth picture, or none at all: no policy gets it
        return Topic(name, kind, rate, stamped)
    return Camera(name, kind, rate, stamped, size, encoding)


def _picture(message: Any) -> tuple[tuple[int, int] | None, str]:
    """Return height and width [px], and the encoding; nothing of a topic that is silent. Raises ObservationError IMAGE_…."""
    if message is None:
        return None, ""
    height, width = decode(message).shape[:2]
    return (height, width), str(message.encoding if hasattr(message, "encoding") else message.format)


def _listeners(seen: Mapping[str, TopicSeen], wanted: Sequence[str]) -> dict[str, Endpoint]:
    """Return command topic → who listens; of the wanted ones, or of all."""
    found: dict[str, Endpoint] = {}
    ours = {p.node for topic in seen.values() for p in topic.publishers if p.type == "vla_ota/msg/PolicyStatus"}
    for name, topic in sorted(seen.items()):
        listeners = (s for s in topic.subscriptions if s.type in types.OUTPUT_FIELDS and s.node not in ours)
        listener = next(listeners, None)  # policy_node's topics for an operator command no controller
        if listener is not None and not (listener.type == types.JOINT_STATE and topic.publishers):  # a measurement
            found[name] = listener
    if missing := sorted(set(wanted) - found.keys()):
        listened = ", ".join(found) or "none"
        raise DraftError("COMMANDS_UNKNOWN", f"{missing[0]}: nobody takes commands there; listened to are {listened}")
    return {name: listener for name, listener in found.items() if not wanted or name in wanted}


def _command(graph: Graph, name: str, kind: str, node: str) -> Command:
    """Ask the listener for its joints: every controller of ros2_control is a node with them as parameters."""
    values = graph.parameters(node, ["joints", "joint", "interface_name", "command_interfaces"]) or {}
    joints = values.get("joints") or ([values["joint"]] if values.get("joint") else [])
    interfaces = values.get("command_interfaces") or [values.get("interface_name") or ""]
    return Command(name, kind, node, tuple(joints), interfaces[0] if len(interfaces) == 1 else "")
