# SPDX-License-Identifier: Apache-2.0
"""JSON values as the dataclasses that wrote them, or an error that names the place. What is read can always be written again."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

_LARGEST_INT = 2**63 - 1
_LARGEST = sys.float_info.max
_DEPTH = 8
"""Of values without a type of their own."""


def parse(data: bytes) -> Any:
    """Return the JSON value; NaN and Infinity, which JSON does not have, raise ``ValueError``."""
    try:
        return json.loads(data, parse_constant=_refuse)
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def decode(kind: Any, value: Any, where: str) -> Any:
    """Return ``value`` as a ``kind``: a dataclass with all its fields, an enum, a number, a text, or containers of these.

    Keys that the dataclass does not have are left out: a later release may have added them.

    Raises:
        ValueError: it is none.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:  # only of a kind and None
        return None if value is None else decode(arguments[0], value, where)
    if origin is list:
        return [decode(arguments[0], entry, f"{where}[{n}]") for n, entry in enumerate(_a(list, value, where))]
    if origin is dict:
        entries = _a(dict, value, where).items()
        return {_text(key, where): decode(arguments[1], entry, f"{where}.{key[:64]}") for key, entry in entries}
    if is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, _a(dict, value, where), where)
    return _scalar(kind, value, where)


def _record(kind: type, value: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    missing = [name for name in names if name not in value]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return kind(**{name: decode(hints[name], value[name], f"{where}.{name}" if where else name) for name in names})


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return _free(value, where, _DEPTH)
    if kind is bool:
        return _a(bool, value, where)
    if kind is str:
        return _text(_a(str, value, where), where)
    if kind is float:
        return _number(value, where)
    number = _a(int, value, where)
    if not 0 <= number <= _LARGEST_INT:
        raise ValueError(f"{where} is out of range")
    if issubclass(kind, Enum):
        return kind(number)
    return number


def _a(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{where} is {str(value)[:40]!r}, not a {kind.__name__}")
    return value


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not -_LARGEST <= value <= _LARGEST:  # nor NaN
        raise ValueError(f"{where} is {str(value)[:40]!r}, not a number in range")
    return float(value)


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"{where} is no Unicode text") from e
    return value


def _free(value: Any, where: str, depth: int) -> Any:
    """Return a value of any type, if it can be written again."""
    if not depth:
        raise ValueError(f"{where} is nested too deeply")
    if isinstance(value, dict):
        return {_text(key, where): _free(entry, where, depth - 1) for key, entry in value.items()}
    if isinstance(value, list):
        return [_free(entry, where, depth - 1) for entry in value]
    if isinstance(value, str):
        return _text(value, where)
    if value is not None and not isinstance(value, bool):
        _number(value, where)
    return value
