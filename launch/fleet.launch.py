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


def _robots(context: LaunchContext) -> list[IncludeLaunchDescription]:
    count = int(LaunchConfiguration("robots").perform(context))
    store_root = Path(LaunchConfiguration("store_root").perform(context))
    return [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(SHARE / "launch" / "sim.launch.py")),
            launch_arguments={
                "namespace": f"robot_{number}",
                "store_dir": str(store_root / f"robot_{number}"),
                "seed": str(number),
                "params_file": LaunchConfiguration("params_file"),
                **{name: LaunchConfiguration(name) for name in ("allowed_sources", "use_sim_time", "log_level")},
            }.items(),
        )
        for number in range(1, count + 1)
    ]


def generate_launch_description() -> LaunchDescription:
    """Describe the launch."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("robots", default_value="2", description="How many simulated robots"),
            DeclareLaunchArgument(
                "store_root",
                default_value=str(Path.home() / ".ros" / "vla_ota_fleet"),
                description="Folder of their stores",
            ),
            DeclareLaunchArgument(
                "params_file",
                default_value=str(SHARE / "config" / "vla_ota.yaml"),
                description="Parameters of all nodes; copy and edit the default one",
            ),
            DeclareLaunchArgument(
                "allowed_sources",
                default_value="",
                description="URL prefixes that checkpoints may come from, separated by spaces; empty = what params_file says",
            ),
            DeclareLaunchArgument("use_sim_time", default_value="false", description="Stamps from /clock"),
            DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error or fatal"),
            OpaqueFunction(function=_robots),
        ]
    )
