# SPDX-License-Identifier: Apache-2.0
"""What ``--help`` says of a node."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from vla_ros.settings import explain

_WIDTH = 110
_TYPES = {bool: "bool", int: "integer", float: "number", str: "text", tuple: "list of texts"}


def usage(name: str, about: str, settings: Sequence[type[Any]]) -> str:
    """Return the text for ``name --help``: how to give a parameter, and every parameter with its default."""
    lines = [
        f"usage: {name} [--help] [--ros-args -p PARAMETER:=VALUE … --params-file FILE -r NAME:=OTHER … --log-level LEVEL]",
        "",
        *textwrap.wrap(about, _WIDTH),
        "",
        "parameters:",
    ]
    for field in (field for kind in settings for field in dataclasses.fields(kind)):
        default = "" if field.default in ("", ()) else f", default {_shown(field.default)}"
        lines.append(f"  {field.name} ({_TYPES[type(field.default)]}{default})")
        lines += textwrap.wrap(explain(field), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return (
        str(list(value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)
    )
