# SPDX-License-Identifier: Apache-2.0
"""One field of a settings dataclass, from which ``vla_ros.parameters`` makes a ROS parameter. No ROS here."""

from __future__ import annotations

import dataclasses
from typing import Any


def setting(
    default: Any,
    doc: str,
    low: float | None = None,
    high: float | None = None,
    *,
    live: bool = False,
    path: bool = False,
) -> Any:
    """Return a dataclass field with ``metadata``.

    Args:
        default: its type is the parameter's; a tuple is a list of texts.
        doc: what it does, for people, with the unit in brackets.
        low: smallest value that is allowed; None = open.
        high: largest value that is allowed; None = open.
        live: it can be set while the node runs.
        path: it names a file or folder, or several; ``~`` is the user's home.
    """
    metadata = {"doc": doc, "low": low, "high": high, "live": live, "path": path}
    return dataclasses.field(default=default, metadata=metadata)


def explain(field: dataclasses.Field[Any]) -> str:
    """Return what a setting does, its range, and whether it can be set while the node runs."""
    low, high = field.metadata["low"], field.metadata["high"]
    span = ""
    if (low, high) != (None, None):
        span = f" ({'' if low is None else f'{low:g}'} to {'' if high is None else f'{high:g}'})".replace(
            " to )", " or more)"
        )
    return f"{field.metadata['doc']}{span}{'; can be set while running' if field.metadata['live'] else ''}"
