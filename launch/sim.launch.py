# SPDX-License-Identifier: Apache-2.0
"""One simulated arm and everything that robot.launch.py starts; it moves from the first second.

ros2 launch vla_ota sim.launch.py
"""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue

import vla_sim

SHARE = Path(get_package_share_directory("vla_ota"))
FIRST_BUNDLE = Path(vla_sim.__file__).parent / "bundles" / "reach_block" / "1.0.0"


def _refuse_wrong(context: LaunchContext) -> None:
    """End the launch before anything starts: nodes that run by then would stay behind."""
    seed = LaunchConfiguration("seed").perform(context)
    if not seed.isdecimal():
        raise RuntimeError(f"seed:={seed} must be a whole number, 0 or more")


def generate_launch_description() -> LaunchDescription:
    """Describe the launch. Every other argument is declared by robot.launch.py, and is set for what comes after it here."""
    own_arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of this robot"),
        DeclareLaunchArgument(
            "contract",
            default_value=str(SHARE / "config" / "sim_arm.contract.yaml"),
            description="Robot contract of the simulated arm",
        ),
        DeclareLaunchArgument(
            "store_root",
            default_value="~/.ros/vla_ota_sim",
            description="Folder of the stores: <store_root>/<namespace>",
        ),
        DeclareLaunchArgument(
            "model_path", default_value=str(FIRST_BUNDLE), description="Bundle to start from while the store is empty"
        ),
        DeclareLaunchArgument("seed", default_value="0", description="Seed of the simulated tasks"),
    ]
    robot = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "robot.launch.py")),
        launch_arguments={"contract": LaunchConfiguration("contract")}.items(),  # what it requires must be named here
    )
    sim_robot = Node(
        package="vla_ota",
        executable="sim_robot",
        name="sim_robot",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        respawn=LaunchConfiguration("respawn"),
        respawn_delay=1.0,
        parameters=[
            ParameterFile(LaunchConfiguration("params_file"), allow_substs=True),
            {"use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)},
            {"seed": ParameterValue(LaunchConfiguration("seed"), value_type=int)},
        ],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
    )
    return LaunchDescription([*own_arguments, OpaqueFunction(function=_refuse_wrong), robot, sim_robot])
