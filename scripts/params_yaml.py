# SPDX-License-Identifier: Apache-2.0
"""Writes config/vla_ota.yaml from the settings dataclasses: python scripts/params_yaml.py > config/vla_ota.yaml."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vla_adaptation.settings import AdaptationSettings
from vla_fleet_bridge.config import BridgeSettings
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.ros.settings import NodeConfig
from vla_policy_node.config import PolicyNodeConfig
from vla_recorder.settings import RecorderSettings
from vla_ros.settings import explain
from vla_sim.settings import SimSettings

HEADER = """\
# Every parameter of every node, with its default. Copy this file, keep what you change, and give it to the launch files as
# params_file:=... Made by scripts/params_yaml.py from the settings dataclasses; a test holds them equal.
# Commented-out ones are given by the launch files' arguments. `/**/name` matches the node in every namespace. A list of strings
# is written [""] when it is empty.
"""

NODES: dict[str, tuple[type[Any], ...]] = {
    "policy_node": (PolicyNodeConfig,),
    "ota_manager": (OtaConfig, NodeConfig),
    "recorder": (RecorderSettings,),
    "adaptation": (AdaptationSettings,),
    "fleet_bridge": (BridgeSettings,),
    "sim_robot": (SimSettings,),
}

# Given by the launch files, because they differ from robot to robot.
BY_LAUNCH = {
    "store_dir",
    "contract",
    "model_path",
    "factory_bundle",
    "seed",
    "autostart",
    "server",
    "enrolment_code",
    "state_dir",
    "recording_dir",
    "adaptation_dir",
    "adapter_dir",
}


def value_text(value: Any) -> str:
    """Return a default as YAML."""
    if isinstance(value, tuple):
        return json.dumps(list(value) or [""])
    return json.dumps(value)


def field_lines(field: dataclasses.Field[Any]) -> list[str]:
    """Return comment and value of one parameter."""
    comment = textwrap.wrap(explain(field), 118)
    prefix = "# " if field.name in BY_LAUNCH else ""
    return [*(f"    # {line}" for line in comment), f"    {prefix}{field.name}: {value_text(field.default)}"]


def document() -> str:
    """Return the whole file."""
    lines = [HEADER]
    for name, settings in NODES.items():
        lines += [f"/**/{name}:", "  ros__parameters:"]
        for kind in settings:
            for field in dataclasses.fields(kind):
                lines += field_lines(field)
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(document(), end="")
