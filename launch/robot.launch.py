# SPDX-License-Identifier: Apache-2.0
"""One robot: policy_node and ota_manager, in one namespace.

ros2 launch vla_ota robot.launch.py contract:=/path/to/my_arm.contract.yaml namespace:=arm_1
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile

SHARE = Path(get_package_share_directory("vla_ota"))
TRUTH = ["true", "false", "True", "False"]
LEVELS = ["debug", "info", "warn", "error", "fatal"]
_NAMESPACE = re.compile(r"/?([A-Za-z_]\w*(/[A-Za-z_]\w*)*)?", re.ASCII)

ARGUMENTS = [
    DeclareLaunchArgument("contract", description="Robot contract (YAML): topics, features, limits, hold. Required"),
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of this policy; one a policy"),
    DeclareLaunchArgument(
        "params_file",
        default_value=str(SHARE / "config" / "vla_ota.yaml"),
        description="Parameters of all nodes; copy and edit the default one",
    ),
    DeclareLaunchArgument(
        "store_dir",
        default_value="",
        description="Folder in which ota_manager keeps checkpoints, one a policy; empty = ~/.ros/vla_ota/<namespace>",
    ),
    DeclareLaunchArgument(
        "allowed_sources",
        default_value="",
        description="URL prefixes that checkpoints may come from, separated by spaces; empty = what params_file says",
    ),
    DeclareLaunchArgument("model_path", default_value="", description="Bundle to start from while the store is empty"),
    DeclareLaunchArgument(
        "worker_python",
        default_value="",
        description="Interpreter that policies run in, one that has their libraries; empty = what params_file says",
    ),
    DeclareLaunchArgument(
        "policy_modules",
        default_value="",
        description="Policy types of your own as type=module, separated by spaces; empty = what params_file says",
    ),
    DeclareLaunchArgument(
        "manager", default_value="true", choices=TRUTH, description="Start ota_manager (false: policy alone)"
    ),
    DeclareLaunchArgument(
        "autostart", default_value="true", choices=TRUTH, description="policy_node configures and activates itself"
    ),
    DeclareLaunchArgument(
        "respawn", default_value="true", choices=TRUTH, description="Start a node again when it dies"
    ),
    DeclareLaunchArgument("use_sim_time", default_value="false", choices=TRUTH, description="Stamps from /clock"),
    DeclareLaunchArgument(
        "log_level", default_value="info", choices=LEVELS, description="Least severity that is logged"
    ),
    DeclareLaunchArgument(
        "fastdds_profile",
        default_value=EnvironmentVariable(
            "FASTRTPS_DEFAULT_PROFILES_FILE", default_value=str(SHARE / "config" / "fastdds.xml")
        ),
        description="Fast DDS profile; the default one has shared memory large enough for cameras",
    ),
]


def _refuse_wrong(given: dict[str, str]) -> None:
    """End the launch for what no node could be started with: else each would be started again and again."""
    if not _NAMESPACE.fullmatch(given["namespace"]):
        raise RuntimeError(
            f"namespace:={given['namespace']} is no namespace: letters, digits and _, parted by /, no digit first"
        )
    for name in ("contract", "params_file"):
        if not Path(given[name]).is_file():
            raise RuntimeError(f"{name}:={given[name]}: there is no such file")
    if given["model_path"] and not Path(given["model_path"]).is_dir():
        raise RuntimeError(f"model_path:={given['model_path']}: there is no such folder")


def robot(context: LaunchContext) -> list[Node]:
    """Return the nodes. An argument that is given goes before what params_file says."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    def truth(name: str) -> bool:
        return given(name).lower() == "true"

    _refuse_wrong({name: given(name) for name in ("namespace", "contract", "params_file", "model_path")})
    own_store = Path.home() / ".ros" / "vla_ota" / given("namespace").strip("/")
    shared: dict[str, Any] = {"store_dir": given("store_dir") or str(own_store), "use_sim_time": truth("use_sim_time")}
    policy: dict[str, Any] = {"contract": given("contract"), "autostart": truth("autostart")}
    manager: dict[str, Any] = {}
    if given("model_path"):
        policy["model_path"] = manager["factory_bundle"] = given("model_path")
    if given("worker_python"):
        policy["worker_python"] = given("worker_python")
    if given("policy_modules"):
        policy["policy_modules"] = given("policy_modules").split()
    if given("allowed_sources"):
        manager["allowed_sources"] = given("allowed_sources").split()

    def node(name: str, own: dict[str, Any]) -> Node:
        return Node(
            package="vla_ota",
            executable=name,
            name=name,
            namespace=given("namespace"),
            parameters=[ParameterFile(given("params_file"), allow_substs=True), shared, own],
            output="screen",
            respawn=truth("respawn"),
            respawn_delay=1.0,
            ros_arguments=["--log-level", given("log_level")],
        )

    nodes = [node("policy_node", policy)]
    if truth("manager"):
        nodes.append(node("ota_manager", manager))
    # The fleet bridge joins here: one node more, with an argument of its own.
    return nodes


def generate_launch_description() -> LaunchDescription:
    """Describe the launch."""
    profile = SetEnvironmentVariable("FASTRTPS_DEFAULT_PROFILES_FILE", LaunchConfiguration("fastdds_profile"))
    return LaunchDescription([*ARGUMENTS, profile, OpaqueFunction(function=robot)])
