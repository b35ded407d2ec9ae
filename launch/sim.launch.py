# SPDX-License-Identifier: Apache-2.0
"""One simulated arm and everything that robot.launch.py starts; it moves from the first second.

ros2 launch vla_ota sim.launch.py
"""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue

import vla_sim

SHARE = Path(get_package_share_directory("vla_ota"))
FIRST_BUNDLE = Path(vla_sim.__file__).parent / "bundles" / "reach_block" / "1.0.0"


def generate_launch_description() -> LaunchDescription:
    """Describe the launch."""
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of this robot"),
        DeclareLaunchArgument(
            "params_file",
            default_value=str(SHARE / "config" / "vla_ota.yaml"),
            description="Parameters of all nodes; copy and edit the default one",
        ),
        DeclareLaunchArgument(
            "contract",
            default_value=str(SHARE / "config" / "sim_arm.contract.yaml"),
            description="Robot contract of the simulated arm",
        ),
        DeclareLaunchArgument(
            "store_dir",
            default_value=[str(Path.home() / ".ros" / "vla_ota_sim"), "/", LaunchConfiguration("namespace")],
            description="Folder in which ota_manager keeps checkpoints",
        ),
        DeclareLaunchArgument(
            "allowed_sources",
            default_value="",
            description="URL prefixes that checkpoints may come from, separated by spaces; empty = what params_file says",
        ),
        DeclareLaunchArgument("seed", default_value="0", description="Seed of the simulated tasks"),
        DeclareLaunchArgument("use_sim_time", default_value="false", description="Stamps from /clock"),
        DeclareLaunchArgument("respawn", default_value="true", description="Start a node again when it dies"),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error or fatal"),
    ]
    robot = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "robot.launch.py")),
        launch_arguments={
            "model_path": str(FIRST_BUNDLE),
            **{
                name: LaunchConfiguration(name)
                for name in (
                    "namespace",
                    "params_file",
                    "contract",
                    "store_dir",
                    "allowed_sources",
                    "use_sim_time",
                    "respawn",
                    "log_level",
                )
            },
        }.items(),
    )
    sim_robot = Node(
        package="vla_ota",
        executable="sim_robot",
        name="sim_robot",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        parameters=[
            ParameterFile(LaunchConfiguration("params_file"), allow_substs=True),
            {"use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)},
            {"seed": ParameterValue(LaunchConfiguration("seed"), value_type=int)},
        ],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
    )
    return LaunchDescription([*arguments, robot, sim_robot])
