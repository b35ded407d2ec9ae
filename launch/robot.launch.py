# SPDX-License-Identifier: Apache-2.0
"""One robot: policy_node and ota_manager, in one namespace.

ros2 launch vla_ota robot.launch.py contract:=/path/to/my_arm.contract.yaml namespace:=arm_1
"""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue

SHARE = Path(get_package_share_directory("vla_ota"))


def generate_launch_description() -> LaunchDescription:
    """Describe the launch."""
    arguments = [
        DeclareLaunchArgument(
            "contract", description="Robot contract (YAML): topics, features, limits, hold. Required"
        ),
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of this policy; one a policy"),
        DeclareLaunchArgument(
            "params_file",
            default_value=str(SHARE / "config" / "vla_ota.yaml"),
            description="Parameters of all nodes; copy and edit the default one",
        ),
        DeclareLaunchArgument(
            "store_dir",
            default_value=[str(Path.home() / ".ros" / "vla_ota"), "/", LaunchConfiguration("namespace")],
            description="Folder in which ota_manager keeps checkpoints; one a policy",
        ),
        DeclareLaunchArgument(
            "model_path", default_value="", description="Bundle to start from while the store is empty"
        ),
        DeclareLaunchArgument("manager", default_value="true", description="Start ota_manager (false: policy alone)"),
        DeclareLaunchArgument(
            "autostart", default_value="true", description="policy_node configures and activates itself"
        ),
        DeclareLaunchArgument("respawn", default_value="true", description="Start a node again when it dies"),
        DeclareLaunchArgument("use_sim_time", default_value="false", description="Stamps from /clock"),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error or fatal"),
    ]
    common = {
        "package": "vla_ota",
        "namespace": LaunchConfiguration("namespace"),
        "output": "screen",
        "respawn": LaunchConfiguration("respawn"),
        "respawn_delay": 1.0,
        "ros_arguments": ["--log-level", LaunchConfiguration("log_level")],
    }
    params_file = ParameterFile(LaunchConfiguration("params_file"), allow_substs=True)
    shared = {
        "use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool),
        "store_dir": ParameterValue(LaunchConfiguration("store_dir"), value_type=str),
    }
    policy_node = Node(
        executable="policy_node",
        name="policy_node",
        parameters=[
            params_file,
            shared,
            {
                "contract": ParameterValue(LaunchConfiguration("contract"), value_type=str),
                "model_path": ParameterValue(LaunchConfiguration("model_path"), value_type=str),
                "autostart": ParameterValue(LaunchConfiguration("autostart"), value_type=bool),
            },
        ],
        **common,
    )

    def ota_manager(context: LaunchContext) -> list[Node]:
        sources = LaunchConfiguration("allowed_sources").perform(context).split()
        own = [{"allowed_sources": sources}] if sources else []
        return [Node(executable="ota_manager", name="ota_manager", parameters=[params_file, shared, *own], **common)]

    manager = OpaqueFunction(function=ota_manager, condition=IfCondition(LaunchConfiguration("manager")))
    # The fleet bridge joins here: one Node more, with a condition of its own.
    return LaunchDescription([*arguments, policy_node, manager])
