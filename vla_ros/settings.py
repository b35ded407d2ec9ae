# SPDX-License-Identifier: Apache-2.0
"""One field of a settings dataclass, from which ``vla_ros.parameters`` makes a ROS parameter. No ROS here."""

from __future__ import annotations

import dataclasses
from typing import Any


def setting(default: Any, doc: str, low: float | None = None, high: float | None = None, *, live: bool = False) -> Any:
    """Return a dataclass field with ``metadata``.

    Args:
        default: its type is the parameter's; a tuple is a list of texts.
        doc: what it does, for people, with the unit in brackets.
        low: smallest value that is allowed; None = open.
        high: largest value that is allowed; None = open.
        live: it can be set while the node runs.
    """
    return dataclasses.field(default=default, metadata={"doc": doc, "low": low, "high": high, "live": live})
