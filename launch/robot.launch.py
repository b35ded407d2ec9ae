# SPDX-License-Identifier: Apache-2.0
"""One robot: policy_node, ota_manager and recorder, in one namespace.

ros2 launch vla_ota robot.launch.py contract:=/path/to/my_arm.contract.yaml namespace:=arm_1
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events import matches_action
from launch.events.process import ProcessExited, ShutdownProcess
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile
from launch_ros.utilities import make_namespace_absolute, prefix_namespace

from vla_ros.start import REFUSED

SHARE = Path(get_package_share_directory("vla_ota"))
TRUTH = ["true", "false", "True", "False"]
LEVELS = ["debug", "info", "warn", "error", "fatal"]
PATHS = ("contract", "params_file", "model_path", "store_root", "store_dir", "worker_tls", "fastdds_profile")
"""Arguments in which ~ is the home folder: a shell does not see it after :=."""
WORKERS = ("worker_python", "policy_modules", "worker_paths", "worker_host", "worker_tls")
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
        "store_root",
        default_value="~/.ros/vla_ota",
        description="Folder of the stores: each policy's is <store_root>/<namespace>, with . for / within the namespace",
    ),
    DeclareLaunchArgument(
        "store_dir",
        default_value="",
        description="Folder in which ota_manager keeps checkpoints, one a policy; empty = the one below store_root",
    ),
    DeclareLaunchArgument(
        "allowed_sources",
        default_value="",
        description="URL prefixes that checkpoints may come from, separated by spaces; empty = what params_file says",
    ),
    DeclareLaunchArgument(
        "mirror_url",
        default_value="",
        description="URL of this site's `vla-fleet mirror`, asked first for each file; empty = what params_file says",
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
        "worker_paths",
        default_value="",
        description="Folders that policies of your own are imported from, separated by spaces; empty = what params_file says",
    ),
    DeclareLaunchArgument(
        "worker_host",
        default_value="",
        description="vla_ota_worker_host on which policies run, name:port; empty = what params_file says (by default: here)",
    ),
    DeclareLaunchArgument(
        "worker_tls",
        default_value="",
        description="Folder with ca.pem, cert.pem and key.pem for worker_host; empty = what params_file says",
    ),
    DeclareLaunchArgument(
        "shadow_only",
        default_value="false",
        choices=TRUTH,
        description="Command nothing; publish what the policy would do. false = what params_file says",
    ),
    DeclareLaunchArgument(
        "manager", default_value="true", choices=TRUTH, description="Start ota_manager (false: policy alone)"
    ),
    DeclareLaunchArgument(
        "recorder", default_value="true", choices=TRUTH, description="Start recorder, the black box (false: none)"
    ),
    DeclareLaunchArgument(
        "adaptation",
        default_value="false",
        choices=TRUTH,
        description="Start adaptation, which trains an adapter on the robot's own episodes while it is idle",
    ),
    DeclareLaunchArgument(
        "adaptation_python",
        default_value="",
        description="Interpreter that adaptation trains in, one with torch and pyarrow; empty = what params_file says",
    ),
    DeclareLaunchArgument(
        "fleet", default_value="", description="Fleet server, wss://host[:port]; starts fleet_bridge. Empty = no fleet"
    ),
    DeclareLaunchArgument(
        "fleet_code",
        default_value="",
        description="Code from `vla-fleet enroll`; needed once, at a robot's first start",
    ),
    DeclareLaunchArgument(
        "autostart", default_value="true", choices=TRUTH, description="policy_node configures and activates itself"
    ),
    DeclareLaunchArgument(
        "respawn",
        default_value="true",
        choices=TRUTH,
        description="Start a node again when it dies, unless its next start would be refused as well",
    ),
    DeclareLaunchArgument(
        "enclave",
        default_value="",
        description="SROS 2: the nodes' enclaves are <enclave>/policy_node, <enclave>/ota_manager, …; empty = none is named",
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
        rule = "it takes letters, digits and _, separated by /, and begins with no digit"
        raise RuntimeError(f"namespace:={given['namespace']} is not a namespace: {rule}")
    for name in ("contract", "params_file"):
        if not Path(given[name]).is_file():
            raise RuntimeError(f"{name}:={given[name]}: the file does not exist")
    if given["fastdds_profile"] and not Path(given["fastdds_profile"]).is_file():
        raise RuntimeError(f"fastdds_profile:={given['fastdds_profile']}: the file does not exist")
    if given["fleet"] and not given["fleet"].startswith(("ws://", "wss://")):
        raise RuntimeError(f"fleet:={given['fleet']}: must begin with wss:// (ws:// on a trusted network)")
    if given["model_path"] and not Path(given["model_path"]).is_dir():
        raise RuntimeError(f"model_path:={given['model_path']}: the folder does not exist")


def _own_store(context: LaunchContext, root: str, namespace: str) -> str:
    """Return the store of a policy: no robot's lies within another's, also not below PushRosNamespace or without a namespace."""
    pushed = context.launch_configurations.get("ros_namespace")
    whole = make_namespace_absolute(prefix_namespace(pushed, namespace)) or ""
    return str(Path(root, whole.strip("/").replace("/", ".") or "no-namespace"))


def _workers(given: dict[str, str]) -> dict[str, Any]:
    """Return those parameters of the workers that are given."""
    paths = [str(Path(path).expanduser()) for path in given["worker_paths"].split()]
    parameters = {**given, "policy_modules": given["policy_modules"].split(), "worker_paths": paths}
    return {name: value for name, value in parameters.items() if value}


def _adaptation(store: str, box: dict[str, Any], python: str) -> dict[str, Any]:
    """Return what adaptation is given: as the recorder, whose episodes it learns from, and with the same server."""
    known = {name: value for name, value in box.items() if name != "contract"}
    known |= {"store_dir": store, "adaptation_dir": str(Path(store, "adaptation"))}
    return known | ({"python": python} if python else {})


def _stay_down(event: ProcessExited, context: LaunchContext) -> EmitEvent | None:
    """End the respawning of a node that has refused to start: launch itself would start it again for ever."""
    if event.returncode != REFUSED or not isinstance(event.action, Node) or event.action.node_package != "vla_ota":
        return None
    return EmitEvent(event=ShutdownProcess(process_matcher=matches_action(event.action)))


def robot(context: LaunchContext) -> list[Action]:
    """Return the nodes. An argument that is given goes before what params_file says."""

    def given(name: str) -> str:
        text = LaunchConfiguration(name).perform(context)
        return str(Path(text).expanduser()) if text and name in (*PATHS, "worker_python", "adaptation_python") else text

    def truth(name: str) -> bool:
        return given(name).lower() == "true"

    _refuse_wrong({name: given(name) for name in ("namespace", "fleet", *PATHS)})
    store = given("store_dir") or _own_store(context, given("store_root"), given("namespace"))
    stored = {"store_dir": store}
    policy: dict[str, Any] = {**stored, "contract": given("contract"), "autostart": truth("autostart")}
    manager: dict[str, Any] = {**stored}
    if given("model_path"):
        policy["model_path"] = manager["factory_bundle"] = given("model_path")
    policy |= _workers({name: given(name) for name in WORKERS})
    policy |= {"shadow_only": True} if truth("shadow_only") else {}
    if given("allowed_sources"):
        manager["allowed_sources"] = given("allowed_sources").split()
    elif given("fleet"):
        manager["allowed_sources"] = [given("fleet").rstrip("/").replace("ws", "http", 1) + "/files/"]
    manager |= {"mirror_url": given("mirror_url")} if given("mirror_url") else {}

    def node(name: str, own: dict[str, Any]) -> Node:
        enclave = ["--enclave", f"{given('enclave').rstrip('/')}/{name}"] if given("enclave") else []
        return Node(
            package="vla_ota",
            executable=name,
            name=name,
            namespace=given("namespace"),
            parameters=[
                ParameterFile(given("params_file"), allow_substs=True),
                {"use_sim_time": truth("use_sim_time")},
                own,
            ],
            output="screen",
            respawn=truth("respawn"),
            respawn_delay=1.0,
            # a delta is made into a file beside a moving robot: on one core
            additional_env={"OPENBLAS_NUM_THREADS": "1"} if name == "ota_manager" else None,
            ros_arguments=["--log-level", given("log_level"), *enclave],
        )

    box = {"contract": given("contract"), "recording_dir": str(Path(store, "recordings"))}
    if given("fleet"):
        box |= {"server": given("fleet"), "state_dir": str(Path(store, "fleet"))}
    adapts = _adaptation(store, box, given("adaptation_python"))
    if truth("adaptation"):
        manager["adapter_dir"] = str(Path(store, "adaptation", "offers"))
    optional = (
        ("manager", "ota_manager", manager),
        ("recorder", "recorder", box),
        ("adaptation", "adaptation", adapts),
    )
    actions: list[Action] = [node("policy_node", policy)]
    actions += [node(name, own) for argument, name, own in optional if truth(argument)]
    if given("fleet"):
        bridge = {
            "server": given("fleet"),
            "enrolment_code": given("fleet_code"),
            "state_dir": str(Path(store, "fleet")),
        }
        actions.append(node("fleet_bridge", bridge))
    if given("fastdds_profile"):
        actions.insert(0, SetEnvironmentVariable("FASTRTPS_DEFAULT_PROFILES_FILE", given("fastdds_profile")))
    return actions


def generate_launch_description() -> LaunchDescription:
    """Describe the launch."""
    refused = RegisterEventHandler(OnProcessExit(on_exit=_stay_down))
    return LaunchDescription([*ARGUMENTS, refused, OpaqueFunction(function=robot)])
