# SPDX-License-Identifier: Apache-2.0
"""``launch`` comes with a ROS 2 installation and is not on PyPI: here its actions only keep what they are given."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOP = Path(__file__).resolve().parents[2]
MODULES = [
    "launch", "launch.actions", "launch.event_handlers", "launch.events", "launch.events.process",
    "launch.launch_description_sources", "launch.substitutions", "launch_ros", "launch_ros.actions",
    "launch_ros.parameter_descriptions", "launch_ros.utilities",
]  # fmt: skip


class Given:
    """Any class of ``launch``: keeps its arguments."""

    def __init__(self, *values: Any, **named: Any) -> None:
        self.values, self.named = values, named
        self.__dict__.update(named)


class Node(Given):
    node_package = "vla_ota"


class LaunchConfiguration(Given):
    def perform(self, context: Any) -> str:
        return str(context.launch_configurations[self.values[0]])


def prefix_namespace(base: str | None, name: str | None) -> str | None:
    if base is None or (name or "").startswith("/"):
        return name
    return f"{base}/{name}".rstrip("/") if name else base


class StandIn(ModuleType):
    Node, LaunchConfiguration = Node, LaunchConfiguration
    prefix_namespace = staticmethod(prefix_namespace)
    make_namespace_absolute = staticmethod(lambda name: name if not name or name.startswith("/") else f"/{name}")
    matches_action = staticmethod(lambda action: action)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Given


def stand_in_for_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let launch files be imported; the package's share folder is the source tree."""
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, StandIn(name))
    monkeypatch.setattr("ament_index_python.packages.get_package_share_directory", lambda package: str(TOP))
