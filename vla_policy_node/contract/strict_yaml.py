# SPDX-License-Identifier: Apache-2.0
"""YAML that a robot's safety hangs on: safe, bounded, no key twice, no key unknown, every error with file and key path."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import yaml

from vla_policy_node.contract.open_values import TODO, meaning
from vla_policy_node.errors import ContractError

MAX_BYTES = 64 * 1024
MAX_ITEMS = 256

S = TypeVar("S")
T = TypeVar("T")


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader takes the last of two equal keys in silence."""


def _mapping_without_duplicates(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
        if key_node.value in seen:
            problem = f"key {key_node.value!r} is there twice"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen.add(key_node.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def parse(text: str, file: str) -> Section:
    """Parse ``text`` and return its top level. Raises ContractError CONTRACT_TOO_LARGE, CONTRACT_SYNTAX."""
    if len(text.encode()) > MAX_BYTES:
        raise ContractError("CONTRACT_TOO_LARGE", f"{file}: at most {MAX_BYTES} bytes")
    try:
        data = yaml.load(text, _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ContractError("CONTRACT_SYNTAX", f"{file}: {e}") from e
    return Section(data, file, "")


class Section:
    """A mapping whose keys are taken one by one; :meth:`done` refuses what is left."""

    def __init__(self, data: Any, file: str, path: str) -> None:
        self.file, self.path = file, path
        if not isinstance(data, Mapping):
            self.fail("CONTRACT_VALUE_INVALID", "", f"must be a mapping, is {_kind(data)}")
        wrong = next((key for key in data if not isinstance(key, str)), None)
        if wrong is not None:
            self.fail("CONTRACT_VALUE_INVALID", "", f"the key {wrong!r} is no word to YAML: quote it")
        self._data = dict(data)
        self._known: list[str] = []

    def fail(self, code: str, key: str, text: str) -> NoReturn:
        """Raise a ContractError that names file and key path."""
        where = f"{self.path}.{key}".strip(".") if key else self.path
        raise ContractError(code, f"{self.file}: {where or 'top level'}: {text}")

    def has(self, key: str) -> bool:
        """Whether the key is there (and not taken yet)."""
        self._known.append(key)
        return key in self._data

    def left(self) -> list[str]:
        """Keys not taken yet."""
        return list(self._data)

    def ignore(self, *keys: str) -> None:
        """Take keys that mean nothing here."""
        for key in keys:
            self._known.append(key)
            self._data.pop(key, None)

    def raw(self, key: str) -> Any:
        """Take a value as it is; it must be there."""
        self._known.append(key)
        if key not in self._data:
            # A misspelt key is the likelier fault: name it first.
            self._refuse_unknown(only_close_to=key)
            self.fail("CONTRACT_KEY_MISSING", key, "is missing")
        value = self._data.pop(key)
        if value == TODO or (isinstance(value, list) and TODO in value):
            self.fail("CONTRACT_TODO", key, f"is still to be filled in: {meaning(key)}")
        return value

    def section(self, key: str) -> Section:
        """Take a mapping."""
        return Section(self.raw(key), self.file, f"{self.path}.{key}".strip("."))

    def items(self, key: str) -> list[Any]:
        """Take a list of at most ``MAX_ITEMS``, not empty."""
        value = self.raw(key)
        if not isinstance(value, list) or not 0 < len(value) <= MAX_ITEMS:
            self.fail("CONTRACT_VALUE_INVALID", key, f"must be a list of 1 to {MAX_ITEMS} items, is {_kind(value)}")
        return value

    def sections(self, key: str) -> list[Section]:
        """Take a mapping, or a list of mappings."""
        value = self.raw(key)
        values = value if isinstance(value, list) else [value]
        if not 0 < len(values) <= MAX_ITEMS:
            self.fail("CONTRACT_VALUE_INVALID", key, f"must have 1 to {MAX_ITEMS} items")
        many = isinstance(value, list)
        at = f"{self.path}.{key}".strip(".")
        return [Section(v, self.file, f"{at}[{i}]" if many else at) for i, v in enumerate(values)]

    def text(self, key: str, choices: Sequence[str] = (), default: str | None = None) -> str:
        """Take a word, one of ``choices`` if there are any."""
        if default is not None and not self.has(key):
            return default
        value = self.raw(key)
        if not isinstance(value, str) or not value or len(value) > 256:
            self.fail("CONTRACT_VALUE_INVALID", key, f"must be a word, is {_kind(value)}")
        if choices and value not in choices:
            self.fail(
                "CONTRACT_VALUE_INVALID", key, f"{value!r} must be one of {', '.join(choices)}{_hint(value, choices)}"
            )
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """Take a finite number in ``[low, high]``."""
        if default is not None and not self.has(key):
            return default
        return self._number(key, self.raw(key), low, high)

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Take a whole number in ``[low, high]``."""
        if default is not None and not self.has(key):
            return default
        value = self.raw(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail("CONTRACT_VALUE_INVALID", key, f"must be a whole number from {low} to {high}, is {value!r}")
        return value

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """Take true or false."""
        if default is not None and not self.has(key):
            return default
        value = self.raw(key)
        if not isinstance(value, bool):
            self.fail("CONTRACT_VALUE_INVALID", key, f"must be true or false, is {value!r}")
        return value

    def interval(self, key: str) -> tuple[float, float]:
        """Take ``[low, high]`` with low < high."""
        value = self.raw(key)
        if not isinstance(value, list) or len(value) != 2:
            self.fail("CONTRACT_VALUE_INVALID", key, f"must be [low, high], is {value!r}")
        low, high = (self._number(key, v, -1e9, 1e9) for v in value)
        if low >= high:
            self.fail("CONTRACT_VALUE_INVALID", key, f"low {low} is not below high {high}")
        return low, high

    def optional(self, key: str, take: Callable[[str], T]) -> T | None:
        """Take a value with ``take`` if the key is there."""
        return take(key) if self.has(key) else None

    def done(self) -> None:
        """Refuse what was not taken."""
        self._refuse_unknown()

    def _number(self, key: str, value: Any, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            self.fail("CONTRACT_VALUE_INVALID", key, f"must be a finite number, is {value!r}")
        if not low <= value <= high:
            self.fail("CONTRACT_VALUE_INVALID", key, f"{value} is not within {low} to {high}")
        return float(value)

    def _refuse_unknown(self, only_close_to: str | None = None) -> None:
        for key in self._data:
            if only_close_to is not None:
                if key not in self._known and difflib.get_close_matches(key, [only_close_to], 1):
                    self.fail("CONTRACT_KEY_UNKNOWN", key, f"is not a key here{_hint(key, [only_close_to])}")
            else:
                self.fail("CONTRACT_KEY_UNKNOWN", key, f"is not a key here{_hint(key, self._known)}")


def each(items: Iterable[S], take: Callable[[S], T]) -> list[T]:
    """Take every item. Raises the error of the first that fails; it carries those of the others."""
    found: list[T] = []
    errors: list[ContractError] = []
    for item in items:
        try:
            found.append(take(item))
        except ContractError as e:
            errors.append(e)
    if errors:
        errors[0].others = tuple(errors[1:])
        raise errors[0]
    return found


def _hint(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
