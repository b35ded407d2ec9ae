# SPDX-License-Identifier: Apache-2.0
"""JSON as RFC 8259 has it, and a little stricter: no duplicate keys, no NaN, no lone surrogates, bounded depth."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeGuard

from vla_checkpoint import limits
from vla_checkpoint.errors import JsonError
from vla_checkpoint.files import PathLike, read_bytes

_MAX_NUMBER_CHARS = 64  # no honest number is longer; bounds the cost of int()


def parse_json(data: bytes, path: PathLike) -> Any:
    """Parse one JSON document; ``path`` is for error messages only.

    Raises:
        JsonError: it is not strict JSON, nested deeper than ``limits.JSON_DEPTH``, or of more than ``limits.JSON_VALUES`` values.
    """

    def refuse(code: str, reason: str) -> NoReturn:
        raise JsonError(code, path, reason)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            refuse("JSON_DUPLICATE_KEY", f"key {duplicate!r} occurs twice")
        return result

    def number(convert: type[int] | type[float]) -> Any:
        def parse(text: str) -> int | float:
            if len(text) > _MAX_NUMBER_CHARS:
                refuse("JSON_SYNTAX", "a number is too long")
            value = -0.0 if text == "-0" else convert(text)
            if value in (float("inf"), float("-inf")):
                refuse("JSON_SYNTAX", f"{text} is out of range")
            return value

        return parse

    if sum(map(data.count, (b"{", b"[", b","))) > limits.JSON_VALUES:
        refuse("JSON_LIMIT", f"more than {limits.JSON_VALUES} values")  # before they become Python objects
    try:
        document = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_int=number(int),
            parse_float=number(float),
            parse_constant=lambda name: refuse("JSON_SYNTAX", f"{name} is not JSON"),
        )
    except RecursionError as e:
        raise JsonError("JSON_LIMIT", path, "nested too deeply") from e
    except ValueError as e:  # UnicodeDecodeError, json.JSONDecodeError
        raise JsonError("JSON_SYNTAX", path, str(e)) from e
    _check_tree(document, path, limits.JSON_DEPTH)
    return document


def load_json(path: PathLike) -> Any:
    """Read and parse a JSON file of at most ``limits.JSON_BYTES``.

    Raises:
        FileError: it cannot be read or is too large.
        JsonError: see :func:`parse_json`.
    """
    return parse_json(read_bytes(path, limits.JSON_BYTES), path)


def load_object(path: PathLike) -> dict[str, Any]:
    """Like :func:`load_json`, for a file whose top level must be an object."""
    document = load_json(path)
    if not isinstance(document, dict):
        raise JsonError("JSON_SYNTAX", path, "the top level must be an object")
    return document


def is_int(value: object) -> TypeGuard[int]:
    """True for a JSON integer (``True`` is not one)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """True for a JSON number (``True`` is not one)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_tree(document: Any, path: PathLike, max_depth: int) -> None:
    """Refuse lone surrogates and nesting beyond ``max_depth`` (level by level: no recursion)."""
    level = [document]
    for _ in range(max_depth + 1):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str) and not _is_unicode(value):
                raise JsonError("JSON_SYNTAX", path, "a string holds a lone surrogate")
        if not below:
            return
        level = below
    raise JsonError("JSON_LIMIT", path, f"nested deeper than {max_depth} levels")


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
