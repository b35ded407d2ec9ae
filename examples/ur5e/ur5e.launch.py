# SPDX-License-Identifier: Apache-2.0
"""UR5e: policy_node and ota_manager with this folder's contract and parameters. The driver and the cameras run already.

ros2 launch vla_ota ur5e.launch.py allowed_sources:=https://models.example/
"""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

HERE = Path(__file__).parent
SHARE = Path(get_package_share_directory("vla_ota"))


def generate_launch_description() -> LaunchDescription:
    """Describe the launch. Every other argument is robot.launch.py's."""
    own = [
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of the robot's topics"),
        DeclareLaunchArgument("contract", default_value=str(HERE / "ur5e.contract.yaml"), description="Robot contract"),
        DeclareLaunchArgument("params_file", default_value=str(HERE / "ur5e.params.yaml"), description="Parameters"),
    ]
    robot = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "robot.launch.py")),
        launch_arguments={"contract": LaunchConfiguration("contract")}.items(),
    )
    return LaunchDescription([*own, robot])
