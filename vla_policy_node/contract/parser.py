# SPDX-License-Identifier: Apache-2.0
"""From YAML to :class:`Contract`: strict, every refusal with code, file and key path."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vla_policy_node.contract import message_types as types
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
    Picture,
    Qos,
    Source,
)
from vla_policy_node.contract.strict_yaml import Section, each
from vla_policy_node.contract.strict_yaml import parse as parse_yaml

MIN_RATE_HZ, MAX_RATE_HZ = 1.0, 500.0
_MAX_SIDE_PX = 4096
_DTYPES = ("float32", "float64", "int32", "int64", "bool", "string", "video")
"""Rosetta's words for what a data set stores; a feature is float32, uint8 or text here, whatever they say."""
_KINDS = ("continuous", "quaternion", "euler_rpy", "axis_angle", "rotation_6d", "binary")
"""Rosetta's hints for normalisation, which is in the bundle here."""
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
    observations, instruction = _observations(top.section("observations"))
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
        instruction=instruction,
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


def _observations(section: Section) -> tuple[tuple[Observation, ...], Source | None]:
    """Return the features, and the topic of the instruction."""
    found = []
    instruction: Source | None = None
    for key, parsed in each(section.left(), lambda key: (key, tuple(_source(s) for s in section.sections(key)))):
        if len(parsed) > 1 and any(s.picture is not None or s.type == types.STRING for s in parsed):
            section.fail("CONTRACT_VALUE_INVALID", key, "a picture has one source, and so has the instruction")
        if parsed[0].type != types.STRING:
            found.append(Observation(key, parsed))
        elif instruction is not None:
            section.fail("CONTRACT_VALUE_INVALID", key, "is a second instruction; there can be one")
        else:
            instruction = parsed[0]
    if not found:
        section.fail("CONTRACT_VALUE_INVALID", "", "names no observation")
    return tuple(found), instruction


def _source(section: Section) -> Source:
    channel = section.section("channel")
    topic, kind = _topic(channel), _type(channel, types.OBSERVATION_TYPES)
    qos = _qos(channel, Qos("reliable", "volatile", 1) if kind == types.STRING else Qos())
    channel.text("dtype", _DTYPES, default="float32")
    _refuse_code(channel)
    channel.done()
    align = _align(section.section("align"), kind)
    section.text("kind", _KINDS, default="continuous")
    if kind == types.STRING:
        section.done()
        return Source(topic, kind, qos, align, ())
    if kind in types.IMAGE_TYPES:
        picture = _picture(section)
        section.done()
        return Source(topic, kind, qos, align, (), picture=picture)
    select = _select(section, kind, types.OBSERVATION_FIELDS[kind])
    degrees, clamp = _numbers(section)
    section.done()
    return Source(topic, kind, qos, align, select, degrees, clamp)


def _refuse_code(channel: Section) -> None:
    """Rosetta imports what these keys name. A contract is data here: it comes with a robot's configuration, not with its code."""
    for key in ("decoder", "encoder"):
        if channel.has(key):
            text = (
                f"code in a contract is not run. Remove the key if `select` and `apply` say all that the {key} does; "
                "else convert in a node of your own"
            )
            channel.fail("CONTRACT_KEY_UNKNOWN", key, text)


def _align(section: Section, kind: str) -> Align:
    strategy = section.text("strategy", ("hold", "asof", "drop"))
    timeline = section.text("timeline", ("header", "receive"))
    if kind == types.STRING and strategy != "hold":
        section.fail("CONTRACT_VALUE_INVALID", "strategy", "must be hold: an instruction does not age")
    if timeline == "header" and kind not in types.STAMPED_TYPES:
        section.fail("CONTRACT_VALUE_INVALID", "timeline", f"{kind} carries no header; use receive")
    tolerance = section.optional("tolerance_ms", lambda k: section.number(k, 0.1, 60_000.0))
    if (strategy == "asof") != (tolerance is not None):
        section.fail("CONTRACT_VALUE_INVALID", "tolerance_ms", "belongs to strategy asof, which needs it")
    section.done()
    return Align(strategy, timeline, tolerance)


def _actions(section: Section) -> tuple[tuple[Output, ...], list[tuple[float, float] | None], list[str]]:
    """Return the outputs in the file's order, their clamps, and what rosetta's ``channel.safety`` says of them."""
    keys = section.left()
    if not keys or not all(key == "action" or key.startswith("action.") for key in keys):
        text = f"must have the key `action`, or several such as `action` and `action.base`; has {keys}"
        section.fail("CONTRACT_VALUE_INVALID", "", text)
    outputs: list[Output] = []
    clamps: list[tuple[float, float] | None] = []
    declared: list[str] = []
    for source in [source for key in keys for source in section.sections(key)]:
        channel = source.section("channel")
        topic, kind = _topic(channel), _type(channel, tuple(types.OUTPUT_FIELDS))
        qos = _qos(channel, Qos("reliable", "volatile", 1))
        declared.append(channel.text("safety", ("none", "hold", "zeros"), default="none"))
        channel.ignore("dtype")
        _refuse_code(channel)
        channel.done()
        source.ignore("align")  # how a recording reads the commands back
        source.text("kind", _KINDS, default="continuous")
        select = _select(source, kind, types.OUTPUT_FIELDS[kind])
        _check_fields(source, select, types.OUTPUT_FIELDS[kind])
        degrees, clamp = _numbers(source)
        source.done()
        start = outputs[-1].stop if outputs else 0
        outputs.append(Output(topic, kind, qos, select, start, degrees))
        clamps.extend([clamp] * len(select))
    if len({o.topic for o in outputs}) != len(outputs):
        section.fail("CONTRACT_VALUE_INVALID", "action", "two outputs have the same topic")
    return tuple(outputs), clamps, declared


def _check_fields(section: Section, select: tuple[str, ...], fields: re.Pattern[str]) -> None:
    """A message must be filled as a whole."""
    if fields is types.ELEMENT and set(select) != {f"data.{i}" for i in range(len(select))}:
        section.fail("CONTRACT_VALUE_INVALID", "select", "must name data.0 to data.N-1, each once")
    if fields is types.JOINT_FIELD:
        _check_joints(section, select)


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
        counts = f"{len(sections)} channels, but actions select {outputs[-1].stop}"
        safety.fail("CONTRACT_VALUE_INVALID", "channels", counts)
    channels = tuple(each(enumerate(sections), lambda item: _channel(item[1], observations, clamps[item[0]], rate_hz)))
    if len({c.name for c in channels}) != len(channels):
        safety.fail("CONTRACT_VALUE_INVALID", "channels", "two channels have the same name")
    for output in outputs:
        for channel, field in zip(channels[output.start : output.stop], output.select, strict=True):
            _check_command(safety, channel, output, field, observations)
    return channels


def _check_command(
    safety: Section, channel: Channel, output: Output, field: str, observations: tuple[Observation, ...]
) -> None:
    """A velocity called a position would be kept up in a hold; degrees taken for radians start the robot at a wrong place."""
    quantity = types.quantity(output.type, field)
    if quantity and quantity != ("position" if channel.is_position else channel.mode):
        text = f"{channel.mode}, but {field} of {output.topic} is a {quantity}"
        safety.fail("CONTRACT_VALUE_INVALID", f"channels.{channel.name}.mode", text)
    if channel.measured is None or quantity != "position":
        return
    source = _source_of(channel.measured, observations)
    if source.type == types.JOINT_STATE and source.rad2deg != output.rad2deg:
        units = {True: "degrees", False: "radians"}
        theirs, ours = units[source.rad2deg], units[output.rad2deg]
        text = f"is in {theirs}, the command in {ours}: `apply: [rad2deg]` to both or to neither"
        safety.fail("CONTRACT_VALUE_INVALID", f"channels.{channel.name}.measured", text)


def _source_of(measured: tuple[str, int], observations: tuple[Observation, ...]) -> Source:
    key, index = measured
    fields = [s for o in observations if o.key == key for s in o.sources for _ in s.select]
    return fields[index]


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
            section.fail("CONTRACT_VALUE_INVALID", bounds, "nothing is left of it within the action's apply.clamp")
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
    names = [
        ((observation.key, i), name, f"{source.topic}:{name}")
        for observation in observations
        for i, (source, name) in enumerate((s, name) for s in observation.sources for name in s.select)
    ]
    found = [place for place, *spellings in names if field in spellings]
    if len(found) != 1:
        known = sorted({name for _, name, _ in names})
        text = f"{field!r} is selected {len(found)} times; selected are {known}"
        hint = f"; write {next(full for _, name, full in names if name == field)!r}" if found else ""
        section.fail("CONTRACT_VALUE_INVALID", "measured", text + hint)
    return found[0]


def _check_declared_safety(
    safety: Section, outputs: tuple[Output, ...], declared: list[str], channels: tuple[Channel, ...]
) -> None:
    """Rosetta's ``channel.safety`` may stand there, but must not say something else than ``safety.channels``."""
    for output, word in zip(outputs, declared, strict=True):
        for channel in channels[output.start : output.stop]:
            if word != "none" and (word == "zeros") != (channel.hold == "zero_velocity"):
                text = f"{channel.hold}, but the action's channel.safety says {word}"
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


def _select(section: Section, kind: str, fields: re.Pattern[str]) -> tuple[str, ...]:
    if fields is types.DATA and not section.has("select"):
        return ("data",)
    names = section.items("select")
    if not all(isinstance(n, str) and n for n in names):
        section.fail("CONTRACT_VALUE_INVALID", "select", "must be a list of field names such as position.j1")
    select = types.canonical(kind, names)
    if not len(set(names)) == len(set(select)) == len(names):
        section.fail("CONTRACT_VALUE_INVALID", "select", "must be a list of different field names such as position.j1")
    wrong = next((name for name, field in zip(names, select, strict=True) if not fields.fullmatch(field)), None)
    if wrong is not None:
        text = f"{wrong!r} is not a field of a {kind} that can be selected; write {types.SPELLINGS[fields]}"
        section.fail("CONTRACT_VALUE_INVALID", "select", text)
    return select


def _numbers(section: Section) -> tuple[bool, tuple[float, float] | None]:
    """Return whether a policy sees degrees where the robot has radians, and the clamp in the policy's unit."""
    found = _apply(section, {"rad2deg": _read_flag, "clamp": _read_clamp})
    clamp: tuple[float, float] | None = found.get("clamp")
    if clamp is not None and list(found) == ["clamp", "rad2deg"]:  # in the order of the file: it clamps radians
        clamp = math.degrees(clamp[0]), math.degrees(clamp[1])
    return "rad2deg" in found, clamp


def _picture(section: Section) -> Picture:
    found = _apply(section, {"crop": _read_crop, "resize": _read_resize, "bgr": _read_flag})
    steps = tuple((name, value) for name, value in found.items() if name != "bgr")
    if not steps:
        section.fail("CONTRACT_KEY_MISSING", "apply", "a picture needs its size: `resize: [height, width]` or a crop")
    return Picture(steps, "bgr" in found)


_OPERATORS = ("rad2deg", "clamp", "crop", "resize", "bgr")


def _apply(section: Section, readers: Mapping[str, Callable[[Section, str], Any]]) -> dict[str, Any]:
    """Return operator → value in the file's order; each is there once at most."""
    found: dict[str, Any] = {}
    for i, item in enumerate(section.items("apply") if section.has("apply") else ()):
        at = f"apply[{i}]"
        operator = Section({item: None} if isinstance(item, str) else item, section.file, f"{section.path}.{at}")
        name = next((name for name in _OPERATORS if operator.has(name)), "")
        if name and name not in readers:
            section.fail("CONTRACT_VALUE_INVALID", at, f"{name} cannot be used here; what can is {', '.join(readers)}")
        if name in found:
            section.fail("CONTRACT_VALUE_INVALID", at, f"{name} is there twice")
        if name:
            found[name] = readers[name](operator, name)
        operator.done()
    return found


def _read_flag(section: Section, name: str) -> bool:
    section.ignore(name)
    return True


def _read_clamp(section: Section, name: str) -> tuple[float, float]:
    clamp = section.section(name)
    low, high = clamp.number("min", -1e9, 1e9), clamp.number("max", -1e9, 1e9)
    clamp.done()
    if low >= high:
        section.fail("CONTRACT_VALUE_INVALID", name, "min is not below max")
    return low, high


def _read_resize(section: Section, name: str) -> tuple[int, int]:
    size = section.items(name)
    if len(size) != 2 or not all(type(n) is int and 1 <= n <= _MAX_SIDE_PX for n in size):
        section.fail("CONTRACT_VALUE_INVALID", name, f"must be [height, width] in pixels, is {size}")
    return size[0], size[1]


def _read_crop(section: Section, name: str) -> tuple[int, int, int, int]:
    crop = section.section(name)
    top, left = (crop.integer(key, 0, 16383) for key in ("top", "left"))
    height, width = (crop.integer(key, 1, _MAX_SIDE_PX) for key in ("height", "width"))
    crop.done()
    return top, left, height, width
