# SPDX-License-Identifier: Apache-2.0
"""ROS parameters from a settings dataclass: one source for name, default, description and range.

Every field carries ``metadata`` with ``doc`` and, for numbers, ``low`` and ``high`` (``None`` = open). Fields are read-only
parameters unless ``metadata["live"]`` is true. In a field of ``metadata["path"]`` ``~`` is the user's home.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

Settings = TypeVar("Settings")

_TYPES = {
    bool: Parameter.Type.BOOL,
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    tuple: Parameter.Type.STRING_ARRAY,
}
_FLOAT_MAX = 1.7976931348623157e308
_INT_MAX = 2**63 - 1


class ParameterError(ValueError):
    """A parameter has the wrong type, is out of its range, or does not exist."""

    code = "PARAMETER_INVALID"


def describe(field: dataclasses.Field[Any]) -> ParameterDescriptor:
    """Return the descriptor of one field."""
    meta: Mapping[str, Any] = field.metadata
    descriptor = ParameterDescriptor(
        name=field.name,
        type=_TYPES[type(field.default)].value,
        description=str(meta.get("doc", "")),
        read_only=not meta.get("live", False),
        # `max_rate:=5` on a command line is an integer; a parameter declared as a double takes it all the same.
        dynamic_typing=isinstance(field.default, float),
    )
    low, high = meta.get("low"), meta.get("high")
    if low is None and high is None:
        return descriptor
    if isinstance(field.default, float):
        span = FloatingPointRange(
            from_value=-_FLOAT_MAX if low is None else float(low), to_value=_FLOAT_MAX if high is None else float(high)
        )
        descriptor.floating_point_range = [span]
    else:
        integers = IntegerRange(
            from_value=-_INT_MAX if low is None else int(low), to_value=_INT_MAX if high is None else int(high), step=0
        )
        descriptor.integer_range = [integers]
    return descriptor


def declare(node: Node, settings: type[Settings]) -> Settings:
    """Declare a parameter for every field and return the settings as given by launch files and command line.

    Raises:
        ParameterError: a value has the wrong type or is out of range; the message names the parameter.
        Whatever ``settings`` itself raises about values that do not go together.

    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        try:
            if isinstance(default, list):  # an empty list has no type of its own
                declared = node.declare_parameter(
                    field.name, Parameter.Type.STRING_ARRAY, describe(field), ignore_override=False
                )
                value = declared.value if declared.value is not None else default
            else:
                value = node.declare_parameter(field.name, default, describe(field)).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as e:
            raise ParameterError(f"{field.name}: {e}") from e
        values[field.name] = _convert(field, value)
    return settings(**values)


def refuse_unknown(node: Node, *settings: type[Any]) -> None:
    """Call this before anything is declared; ``settings``: every dataclass that will be.

    Raises:
        ParameterError: a value was given for a parameter that the node does not have; it is probably misspelt.

    """
    known = [
        *node.list_parameters([], 0).names,
        *(field.name for kind in settings for field in dataclasses.fields(kind)),
    ]
    for name in node._parameter_overrides:  # rclpy has no other way to ask what was given
        if name in known or name.startswith("qos_overrides."):
            continue
        near = difflib.get_close_matches(name, known, 1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else "--help lists those there are; give other nodes' under their own names"
        )
        raise ParameterError(f"{name}: {node.get_name()} has no such parameter; {hint}")


def _convert(field: dataclasses.Field[Any], value: Any) -> Any:
    if isinstance(field.default, tuple):
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ParameterError(f"{field.name}: must be a list of strings")
        return tuple(_expanded(field, item) for item in value if item)
    if isinstance(field.default, str):
        return _expanded(field, value)
    if isinstance(field.default, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ParameterError(f"{field.name}: must be a number, not {value!r}")
        return float(value)
    return value


def _expanded(field: dataclasses.Field[Any], text: str) -> str:
    if not field.metadata.get("path"):
        return text
    path = os.path.expanduser(text)  # noqa: PTH111  (an interpreter's name is no path)
    if path.startswith("~"):
        raise ParameterError(f"{field.name}: {text}: there is no such home folder")
    return path


def on_live_change(node: Node, settings: type[Any], apply: Callable[[str, Any], None]) -> None:
    """Call ``apply(name, value)`` when a live parameter is set; an exception of it refuses the change with its text."""
    fields = {f.name: f for f in dataclasses.fields(settings)}

    def callback(parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            field = fields.get(parameter.name)
            if field is None:
                continue
            try:
                apply(parameter.name, _convert(field, parameter.value))
            except ValueError as e:
                return SetParametersResult(successful=False, reason=str(e))
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(callback)
