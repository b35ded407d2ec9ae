# SPDX-License-Identifier: Apache-2.0
"""Several simulated robots, one namespace and one store each.

ros2 launch vla_ota fleet.launch.py robots:=3
"""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

SHARE = Path(get_package_share_directory("vla_ota"))
COMMON = (
    "params_file",
    "worker_python",
    "policy_modules",
    "allowed_sources",
    "manager",
    "recorder",
    "use_sim_time",
    "respawn",
    "log_level",
    "fastdds_profile",
)
"""Arguments of sim.launch.py that mean the same for every robot."""


def _sim() -> PythonLaunchDescriptionSource:
    return PythonLaunchDescriptionSource(str(SHARE / "launch" / "sim.launch.py"))  # one a robot: a node starts once


def _robots(context: LaunchContext) -> list[IncludeLaunchDescription]:
    robots = LaunchConfiguration("robots").perform(context)
    if not robots.isdecimal() or int(robots) < 1:
        raise RuntimeError(f"robots:={robots} must be a whole number, 1 or more")
    return [
        IncludeLaunchDescription(
            _sim(),
            launch_arguments={"namespace": f"robot_{number}", "seed": str(number)}.items(),
        )
        for number in range(1, int(robots) + 1)
    ]


def generate_launch_description() -> LaunchDescription:
    """Describe the launch."""
    declared = _sim().get_launch_description(LaunchContext()).get_launch_arguments()
    common = {argument.name: argument for argument in declared if argument.name in COMMON}
    return LaunchDescription(
        [
            DeclareLaunchArgument("robots", default_value="2", description="How many simulated robots"),
            DeclareLaunchArgument(
                "store_root", default_value="~/.ros/vla_ota_fleet", description="Folder of their stores"
            ),
            *common.values(),
            OpaqueFunction(function=_robots),
        ]
    )
