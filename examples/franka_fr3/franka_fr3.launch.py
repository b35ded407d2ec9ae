# SPDX-License-Identifier: Apache-2.0
"""Franka Research 3: policy_node, ota_manager and the hand with this folder's contract and parameters. The driver runs already.

ros2 launch vla_ota franka_fr3.launch.py allowed_sources:=https://models.example/
"""

from __future__ import annotations

import sys
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

HERE = Path(__file__).parent
SHARE = Path(get_package_share_directory("vla_ota"))


def generate_launch_description() -> LaunchDescription:
    """Describe the launch. Every other argument is robot.launch.py's."""
    own = [
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of the robot's topics"),
        DeclareLaunchArgument(
            "contract", default_value=str(HERE / "franka_fr3.contract.yaml"), description="Robot contract"
        ),
        DeclareLaunchArgument(
            "params_file", default_value=str(HERE / "franka_fr3.params.yaml"), description="Parameters"
        ),
    ]
    robot = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "robot.launch.py")),
        launch_arguments={"contract": LaunchConfiguration("contract")}.items(),
    )
    hand = Node(
        executable=sys.executable,
        arguments=[str(HERE / "hand_relay.py")],
        name="hand_relay",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        respawn=True,
        respawn_delay=1.0,
    )
    return LaunchDescription([*own, hand, robot])
