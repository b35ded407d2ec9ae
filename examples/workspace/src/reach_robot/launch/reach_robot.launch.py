# SPDX-License-Identifier: Apache-2.0
"""policy_node and ota_manager with this package's contract, and the simulated arm in place of a driver.

ros2 launch reach_robot reach_robot.launch.py model_path:=$PWD/bundles/reach/1.0.0
"""

from __future__ import annotations

from pathlib import Path

import reach_robot
from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

PACKAGES = Path(reach_robot.__file__).parents[1]
CONFIG = Path(get_package_share_directory("reach_robot")) / "config"
VLA_OTA = Path(get_package_share_directory("vla_ota"))


def generate_launch_description() -> LaunchDescription:
    """Describe the launch. Every other argument is robot.launch.py's."""
    own = [
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of the robot's topics"),
        DeclareLaunchArgument(
            "contract", default_value=str(CONFIG / "reach_robot.contract.yaml"), description="Contract"
        ),
        DeclareLaunchArgument("params_file", default_value=str(CONFIG / "params.yaml"), description="Parameters"),
    ]
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(VLA_OTA / "launch" / "robot.launch.py")),
        launch_arguments={
            "contract": LaunchConfiguration("contract"),
            "worker_paths": str(PACKAGES),  # workers see nothing of a ROS workspace but what is named
        }.items(),
    )
    arm = Node(
        package="vla_ota",
        executable="sim_robot",
        name="sim_robot",
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file")],
        output="screen",
    )
    return LaunchDescription([*own, policy, arm])
