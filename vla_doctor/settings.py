# SPDX-License-Identifier: Apache-2.0
"""Settings of the doctor: at once its ROS parameters and its command line."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vla_ros.settings import setting

EPILOG = """\
Everything may also be given as ROS parameters: ros2 run vla_ota doctor --ros-args -p contract:=FILE -p seconds:=5.0
Run it on the robot's computer, as the user of the nodes, with their environment and their remappings (-r).
It publishes nothing and calls only services that read. Exit status: 0 all is well or warnings, 1 something failed, 2 usage.
"""


@dataclass(frozen=True)
class DoctorSettings:
    """What to look at."""

    contract: str = setting("", "Robot contract (YAML); empty = the one that policy_node runs with", path=True)
    topics: str = setting(
        "", "Check the contract against this list instead of a robot: the output of ros2 topic list -t", path=True
    )
    store_dir: str = setting("", "Store of ota_manager; empty = the one that the nodes run with", path=True)
    policy_node: str = setting("policy_node", "Name of the policy node, in the doctor's namespace")
    ota_manager: str = setting("ota_manager", "Name of the manager, in the doctor's namespace")
    seconds: float = setting(3.0, "How long topics are listened to [s]", 0.5, 600.0)
    memory_reserve_bytes: int = setting(
        512 << 20, "Memory that must stay free beside two loaded policies [bytes]", 0, 1 << 50
    )
    before_start: bool = setting(False, "The nodes are not started yet: do not report them as missing")
    json: bool = setting(False, "Write the report as JSON")


def parse_arguments(arguments: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Read the command line without its ROS part; return settings that it names, and the namespace ("" = not given).

    Raises:
        SystemExit: 2 for wrong usage, 0 after --help.
    """
    parser = argparse.ArgumentParser(
        prog="doctor",
        description="Check that this robot can run a policy and change it, and say what to do where it cannot.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--namespace", default="", metavar="NS", help="Namespace of the policy; empty = of the only one that runs"
    )
    for field in dataclasses.fields(DoctorSettings):
        flag, doc = "--" + field.name.replace("_", "-"), f"{field.metadata['doc']}"
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true", help=doc)
        else:
            shown = f" (default {field.default})" if field.default != "" else ""
            parser.add_argument(flag, type=_typed(field), metavar="X", help=doc + shown)
    values = vars(parser.parse_args(arguments))
    return values, values.pop("namespace")


def _typed(field: dataclasses.Field[Any]) -> Any:
    """Return the argument's conversion, which checks the range."""
    kind: Any = type(field.default)
    low, high = field.metadata["low"], field.metadata["high"]

    def convert(text: str) -> Any:
        value = kind(text)
        if low is not None and not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low} to {high}")
        return value

    convert.__name__ = kind.__name__  # argparse names it where a text is not a number
    return convert
