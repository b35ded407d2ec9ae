# SPDX-License-Identifier: Apache-2.0
"""From YAML to :class:`Contract`: strict, every refusal with code, file and key path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vla_policy_node.contract.model import (
    HOLDS,
    MODES,
    Align,
    Channel,
    ChannelLimits,
    Contract,
    Motion,
    Observation,
    Output,
    Qos,
    Source,
)
from vla_policy_node.contract.strict_yaml import Section
from vla_policy_node.contract.strict_yaml import parse as parse_yaml

MIN_RATE_HZ, MAX_RATE_HZ = 1.0, 500.0

IMAGE_TYPE = "sensor_msgs/msg/Image"
OBSERVATION_TYPES = (
    IMAGE_TYPE,
    "sensor_msgs/msg/JointState",
    "sensor_msgs/msg/Imu",
    "geometry_msgs/msg/Twist",
    "geometry_msgs/msg/TwistStamped",
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/WrenchStamped",
    "nav_msgs/msg/Odometry",
    "std_msgs/msg/Float32",
    "std_msgs/msg/Float64",
    "std_msgs/msg/Float32MultiArray",
    "std_msgs/msg/Float64MultiArray",
)
STAMPED_TYPES = frozenset(t for t in OBSERVATION_TYPES if not t.startswith("std_msgs/")) - {"geometry_msgs/msg/Twist"}
_JOINT_FIELD = re.compile(r"(position|velocity|effort)\.(.+)")
_TWIST_FIELD = re.compile(r"(linear|angular)\.[xyz]")
OUTPUT_FIELDS = {
    "std_msgs/msg/Float64MultiArray": re.compile(r"data\.\d{1,3}"),
    "sensor_msgs/msg/JointState": _JOINT_FIELD,
    "trajectory_msgs/msg/JointTrajectory": _JOINT_FIELD,
    "geometry_msgs/msg/Twist": _TWIST_FIELD,
    "geometry_msgs/msg/TwistStamped": re.compile(r"twist\." + _TWIST_FIELD.pattern),
}
_JOINTS = "position.JOINT, velocity.JOINT or effort.JOINT, such as position.shoulder"
OUTPUT_SPELLINGS = {
    "std_msgs/msg/Float64MultiArray": "data.0 to data.N-1, each once",
    "sensor_msgs/msg/JointState": _JOINTS,
    "trajectory_msgs/msg/JointTrajectory": _JOINTS,
    "geometry_msgs/msg/Twist": "linear.x, .y, .z and angular.x, .y, .z",
    "geometry_msgs/msg/TwistStamped": "twist.linear.x, .y, .z and twist.angular.x, .y, .z",
}
"""How ``select`` names the fields of each command type, in words."""
# Sections of rosetta that concern recording and teleoperation.
_RECORD_ONLY = ("teleop", "tasks", "rewards", "signals", "info", "complementary_data", "adjunct", "robot_interface")
_TOPIC = re.compile(r"[~/A-Za-z_][A-Za-z0-9_/]*")


def parse(text: str, path: Path) -> Contract:
    """See :func:`vla_policy_node.contract.model.parse_contract`."""
    top = parse_yaml(text, str(path))
    safety = top.section("x-safety" if top.has("x-safety") else "safety")
    top.ignore(*_RECORD_ONLY, *(k for k in top.left() if k.startswith("x-")))
    rate = top.number("rate_hz" if top.has("rate_hz") else "fps", MIN_RATE_HZ, MAX_RATE_HZ)
    robot_type = top.text("robot_type")
    name = top.text("name", default=robot_type)
    observations = _observations(top.section("observations"))
    outputs, clamps, declared = _actions(top.section("actions"))
    top.done()
    channels = _channels(safety, observations, outputs, clamps, rate)
    _check_declared_safety(safety, outputs, declared, channels)
    motion = safety.section("motion_enabled")
    contract = Contract(
        name=name,
        robot_type=robot_type,
        rate_hz=rate,
        observations=observations,
        outputs=outputs,
        channels=channels,
        motion=Motion(
            motion.boolean("required"),
            motion.number("timeout_s", 0.05, 10.0),
            motion.text("topic", default="motion_enabled"),
        ),
        auto_resume=safety.boolean("auto_resume", default=False),
        observation_max_age_s=safety.number("observation_max_age_ms", 1.0, 10_000.0) / 1e3,
        blend_ticks=safety.integer("blend_ticks", 0, 200, default=4),
        rest_ticks=safety.integer("rest_ticks", 1, 10_000, default=10),
        latency_margin_ticks=safety.integer("latency_margin_ticks", 0, 200, default=2),
        text=text,
        path=path,
    )
    motion.done()
    safety.done()
    return contract


def _observations(section: Section) -> tuple[Observation, ...]:
    found = []
    for key in section.left():
        sources = section.sections(key)
        parsed = tuple(_source(s) for s in sources)
        if any(s.resize is not None for s in parsed) and len(parsed) > 1:
            section.fail("CONTRACT_VALUE_INVALID", key, "a picture has one source")
        found.append(Observation(key, parsed))
    if not found:
        section.fail("CONTRACT_VALUE_INVALID", "", "names no observation")
    return tuple(found)


def _source(section: Section) -> Source:
    channel = section.section("channel")
    topic, kind = _topic(channel), _type(channel, OBSERVATION_TYPES)
    qos = _qos(channel, Qos())
    channel.text("dtype", ("float32", "float64", "video"), default="float32")  # features are float32 here, or pictures
    channel.done()
    align = _align(section.section("align"), kind)
    is_image = kind == IMAGE_TYPE
    select = () if is_image else _select(section)
    apply = _apply(section)
    section.done()
    if is_image and apply.get("resize") is None:
        section.fail("CONTRACT_KEY_MISSING", "apply", "a picture needs `resize: [height, width]`")
    if is_image != ("resize" in apply) or (is_image and len(apply) > 1):
        section.fail("CONTRACT_VALUE_INVALID", "apply", "pictures take resize, numbers take rad2deg and clamp")
    return Source(topic, kind, qos, align, select, "rad2deg" in apply, apply.get("clamp"), apply.get("resize"))


def _align(section: Section, kind: str) -> Align:
    strategy = section.text("strategy", ("hold", "asof", "drop"))
    timeline = section.text("timeline", ("header", "receive"))
    if timeline == "header" and kind not in STAMPED_TYPES:
        section.fail("CONTRACT_VALUE_INVALID", "timeline", f"{kind} carries no header; use receive")
    tolerance = section.optional("tolerance_ms", lambda k: section.number(k, 0.1, 60_000.0))
    if (strategy == "asof") != (tolerance is not None):
        section.fail("CONTRACT_VALUE_INVALID", "tolerance_ms", "belongs to strategy asof, which needs it")
    section.done()
    return Align(strategy, timeline, tolerance)


def _actions(section: Section) -> tuple[tuple[Output, ...], list[tuple[float, float] | None], list[str]]:
    """Return the outputs, their clamps, and what rosetta's ``channel.safety`` says of them."""
    if section.left() != ["action"]:
        section.fail("CONTRACT_VALUE_INVALID", "", f"must have exactly the key `action`, has {section.left()}")
    outputs: list[Output] = []
    clamps: list[tuple[float, float] | None] = []
    declared: list[str] = []
    for source in section.sections("action"):
        channel = source.section("channel")
        topic, kind = _topic(channel), _type(channel, tuple(OUTPUT_FIELDS))
        qos = _qos(channel, Qos("reliable", "volatile", 1))
        declared.append(channel.text("safety", ("none", "hold", "zeros"), default="none"))
        channel.ignore("dtype")
        channel.done()
        source.ignore("align")  # how a recording reads the commands back
        select = _select(source)
        wrong = next((s for s in select if not OUTPUT_FIELDS[kind].fullmatch(s)), None)
        if wrong is not None:
            text = f"{wrong!r} is not a field of a {kind} command; write {OUTPUT_SPELLINGS[kind]}"
            source.fail("CONTRACT_VALUE_INVALID", "select", text)
        if kind == "std_msgs/msg/Float64MultiArray" and sorted(select) != sorted(
            f"data.{i}" for i in range(len(select))
        ):
            source.fail("CONTRACT_VALUE_INVALID", "select", "must name data.0 to data.N-1, each once")
        if OUTPUT_FIELDS[kind] is _JOINT_FIELD:
            _check_joints(source, select)
        apply = _apply(source)
        source.done()
        if "resize" in apply:
            source.fail("CONTRACT_VALUE_INVALID", "apply", "an action cannot be resized")
        start = outputs[-1].stop if outputs else 0
        outputs.append(Output(topic, kind, qos, select, start, "rad2deg" in apply))
        clamps.extend([apply.get("clamp")] * len(select))
    if len({o.topic for o in outputs}) != len(outputs):
        section.fail("CONTRACT_VALUE_INVALID", "action", "two outputs have the same topic")
    return tuple(outputs), clamps, declared


def _check_joints(section: Section, select: tuple[str, ...]) -> None:
    """A message with a position for one joint and only a velocity for another cannot be written."""
    joints: dict[str, set[str]] = {}
    for entry in select:
        field, _, joint = entry.partition(".")
        joints.setdefault(field, set()).add(joint)
    if len({frozenset(names) for names in joints.values()}) > 1:
        section.fail("CONTRACT_VALUE_INVALID", "select", "each joint needs the same fields")


def _channels(
    safety: Section,
    observations: tuple[Observation, ...],
    outputs: tuple[Output, ...],
    clamps: list[tuple[float, float] | None],
    rate_hz: float,
) -> tuple[Channel, ...]:
    sections = safety.sections("channels")
    if len(sections) != outputs[-1].stop:
        counts = f"{len(sections)} channels, but actions.action selects {outputs[-1].stop}"
        safety.fail("CONTRACT_VALUE_INVALID", "channels", counts)
    channels = tuple(_channel(s, observations, clamps[i], rate_hz) for i, s in enumerate(sections))
    if len({c.name for c in channels}) != len(channels):
        safety.fail("CONTRACT_VALUE_INVALID", "channels", "two channels have the same name")
    return channels


def _channel(
    section: Section, observations: tuple[Observation, ...], clamp: tuple[float, float] | None, rate_hz: float
) -> Channel:
    mode = section.text("mode", MODES)
    limits = _limits(section.section("limits"), mode, clamp)
    position = mode in ("absolute", "relative")
    hold = section.text("hold", HOLDS)
    if hold not in _SENSIBLE_HOLDS[mode]:
        choices = " or ".join(_SENSIBLE_HOLDS[mode])
        section.fail("CONTRACT_HOLD_INVALID", "hold", f"{hold} does not stop a channel of mode {mode}; use {choices}")
    measured = section.optional("measured", section.text)
    if measured is None and position:
        section.fail(
            "CONTRACT_KEY_MISSING", "measured", "a position channel needs it: which selected field measures it"
        )
    timeout = section.optional("downstream_timeout_ms", lambda k: section.number(k, 1.0, 10_000.0))
    if timeout is None and not position:
        need = f"a {mode} channel is refused unless the driver stops by itself: say after how long without commands"
        section.fail("DOWNSTREAM_TIMEOUT_MISSING", "downstream_timeout_ms", need)
    if timeout is not None and timeout < 2e3 / rate_hz:
        section.fail(
            "CONTRACT_VALUE_INVALID", "downstream_timeout_ms", f"{timeout} ms is shorter than two control periods"
        )
    channel = Channel(
        name=section.text("name"),
        unit=section.text("unit"),
        mode=mode,
        limits=limits,
        hold=hold,
        max_decel=section.number("max_decel", 1e-6, 1e9),
        hold_timeout_s=section.number("hold_timeout_s", 0.01, 86_400.0),
        start_tolerance=section.number("start_tolerance", 0.0, 1e9, default=limits.step),
        rest_step=section.number("rest_step", 0.0, 1e9),
        measured=None if measured is None else _find_measured(section, measured, observations),
    )
    section.done()
    return channel


# A velocity kept up is motion; a velocity or effort cannot be set to a measured position.
_SENSIBLE_HOLDS = {
    "absolute": ("last_command", "measured"),
    "relative": ("last_command", "measured"),
    "velocity": ("zero_velocity",),
    "effort": ("last_command", "zero_velocity"),  # zero_velocity = the effort goes to zero
}
# mode → names of the bounds and of their change per second
_LIMIT_NAMES = {
    "absolute": ("position", "velocity"),
    "relative": ("position", "velocity"),
    "velocity": ("velocity", "acceleration"),
    "effort": ("effort", "effort_rate"),
}


def _limits(section: Section, mode: str, clamp: tuple[float, float] | None) -> ChannelLimits:
    bounds, rate = _LIMIT_NAMES[mode]
    low, high = section.interval(bounds)
    if clamp is not None:
        low, high = max(low, clamp[0]), min(high, clamp[1])
        if low >= high:
            section.fail("CONTRACT_VALUE_INVALID", bounds, "nothing is left of it within actions.action.apply.clamp")
    if mode in ("velocity", "effort") and not low <= 0.0 <= high:
        section.fail("CONTRACT_VALUE_INVALID", bounds, "must include 0: that is where a stop ends")
    limits = ChannelLimits(
        low=low,
        high=high,
        rate=section.number(rate, 1e-9, 1e9),
        step=section.number("step", 1e-9, 1e9),
        tolerance=section.number("tolerance", 0.0, 1e9, default=0.0),
    )
    section.done()
    return limits


def _find_measured(section: Section, field: str, observations: tuple[Observation, ...]) -> tuple[str, int]:
    found = []
    for observation in observations:
        names = [name for source in observation.sources for name in source.select]
        found += [(observation.key, i) for i, name in enumerate(names) if name == field]
    if len(found) != 1:
        known = sorted({n for o in observations for s in o.sources for n in s.select})
        section.fail(
            "CONTRACT_VALUE_INVALID", "measured", f"{field!r} is selected {len(found)} times; selected are {known}"
        )
    return found[0]


def _check_declared_safety(
    safety: Section, outputs: tuple[Output, ...], declared: list[str], channels: tuple[Channel, ...]
) -> None:
    """Rosetta's ``channel.safety`` may stand there, but must not say something else than ``safety.channels``."""
    for output, word in zip(outputs, declared, strict=True):
        for channel in channels[output.start : output.stop]:
            if word != "none" and (word == "zeros") != (channel.hold == "zero_velocity"):
                text = f"{channel.hold}, but actions.action.channel.safety says {word}"
                safety.fail("CONTRACT_HOLD_INVALID", f"channels.{channel.name}.hold", text)


def _topic(section: Section) -> str:
    topic = section.text("topic")
    if not _TOPIC.fullmatch(topic) or "//" in topic or topic.endswith("/"):
        section.fail("CONTRACT_VALUE_INVALID", "topic", f"{topic!r} is not a topic name")
    return topic


def _type(section: Section, supported: tuple[str, ...]) -> str:
    kind = section.text("type")
    if kind.count("/") == 1:
        kind = kind.replace("/", "/msg/")
    if kind not in supported:
        section.fail(
            "CONTRACT_TYPE_UNSUPPORTED", "type", f"{kind} is not supported; supported are {', '.join(supported)}"
        )
    return kind


def _qos(section: Section, default: Qos) -> Qos:
    if not section.has("qos"):
        return default
    qos = section.section("qos")
    qos.text("history", ("keep_last",), default="keep_last")
    found = Qos(
        qos.text("reliability", ("reliable", "best_effort"), default=default.reliability),
        qos.text("durability", ("volatile", "transient_local"), default=default.durability),
        qos.integer("depth", 1, 1000, default=default.depth),
    )
    qos.done()
    return found


def _select(section: Section) -> tuple[str, ...]:
    names = section.items("select")
    if not all(isinstance(n, str) and n for n in names) or len(set(names)) != len(names):
        section.fail("CONTRACT_VALUE_INVALID", "select", "must be a list of different field names such as position.j1")
    return tuple(names)


def _apply(section: Section) -> dict[str, Any]:
    """Return the operators: ``rad2deg`` → True, ``clamp`` → (low, high), ``resize`` → (height, width)."""
    found: dict[str, Any] = {}
    if not section.has("apply"):
        return found
    for i, item in enumerate(section.items("apply")):
        at = f"apply[{i}]"
        operator = Section({item: None} if isinstance(item, str) else item, section.file, f"{section.path}.{at}")
        name = next(iter(operator.left()), "")
        if name in found:
            section.fail("CONTRACT_VALUE_INVALID", at, f"{name} is there twice")
        if operator.has("rad2deg"):
            operator.ignore("rad2deg")
            found["rad2deg"] = True
        elif operator.has("clamp"):
            clamp = operator.section("clamp")
            found["clamp"] = (clamp.number("min", -1e9, 1e9), clamp.number("max", -1e9, 1e9))
            clamp.done()
            if found["clamp"][0] >= found["clamp"][1]:
                section.fail("CONTRACT_VALUE_INVALID", at, "min is not below max")
        elif operator.has("resize"):
            size = operator.items("resize")
            if len(size) != 2 or not all(type(n) is int and 1 <= n <= 4096 for n in size):
                section.fail("CONTRACT_VALUE_INVALID", at, f"resize must be [height, width], is {size}")
            found["resize"] = (size[0], size[1])
        operator.done()
    return found
