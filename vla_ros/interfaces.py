# SPDX-License-Identifier: Apache-2.0
"""Message classes by name, for topics that a contract or parameter names."""

from __future__ import annotations

import importlib
from typing import Any


class UnknownTypeError(ValueError):
    """No such message type is installed."""

    code = "MESSAGE_TYPE_UNKNOWN"


def message_class(name: str) -> Any:
    """Return the class of ``package/msg/Name``. Raises :class:`UnknownTypeError`."""
    package, _, message = name.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), message)
    except (ImportError, AttributeError, ValueError) as e:
        raise UnknownTypeError(f"{name!r} is not an installed message type (package/msg/Name)") from e
