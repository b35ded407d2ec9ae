# SPDX-License-Identifier: Apache-2.0
"""Message definitions as MCAP's schema encoding ``ros2msg`` wants them: the type's own text, then those it is made of."""

from __future__ import annotations

import functools
import re
from importlib.util import find_spec
from pathlib import Path

from vla_ros.interfaces import UnknownTypeError

_BETWEEN = "=" * 80
_FIELD = re.compile(r"^\s*((?:[a-zA-Z]\w*/)?[a-zA-Z]\w*)(?:<=\d+)?(?:\[[^\]]*\])?\s+[a-zA-Z]")
_PRIMITIVES = re.compile(r"bool|byte|char|w?string|float(32|64)|u?int(8|16|32|64)")


@functools.cache
def schema(kind: str) -> str:
    """Return the schema of ``package/msg/Name``. Raises UnknownTypeError if a definition is not installed."""
    root = _short(kind)
    texts: dict[str, str] = {}
    wanted = [root]
    while wanted:
        name = wanted.pop(0)
        if name not in texts:
            texts[name] = _text(name)
            wanted += _used(name, texts[name])
    return "".join([texts.pop(root), *(f"\n{_BETWEEN}\nMSG: {name}\n{text}" for name, text in texts.items())])


def _short(kind: str) -> str:
    package, _, name = kind.partition("/")
    return f"{package}/{name.removeprefix('msg/')}"


def _text(name: str) -> str:
    package, _, message = name.partition("/")
    found = find_spec(package)
    # An installed package has its Python code and its definitions below one prefix; how deep the code lies differs.
    for prefix in Path(found.origin).parents if found is not None and found.origin else ():
        file = prefix / "share" / package / "msg" / f"{message}.msg"
        if file.is_file():
            return file.read_text(encoding="utf-8")
    raise UnknownTypeError(f"{package}/msg/{message}: its definition is not installed")


def _used(name: str, text: str) -> list[str]:
    """Return the types of the fields that are messages themselves."""
    found = []
    for line in text.splitlines():
        field = _FIELD.match(line)
        if field and not _PRIMITIVES.fullmatch(field[1]):
            found.append(_short(field[1]) if "/" in field[1] else f"{name.partition('/')[0]}/{field[1]}")
    return found
