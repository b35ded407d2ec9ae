# SPDX-License-Identifier: Apache-2.0
"""A real robot of a demonstration: the processes of a simulated arm on the nodes that a real arm runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_sim.demo.processes import Processes

# Quick, but honest, as in the demonstration of one robot: a trial takes seconds here and minutes on a real robot.
_MANAGER = {
    "min_free_bytes": 64 << 20,
    "block_chunks": 1,
    "tolerated_exceedance": 0.4,
    "first_install_chunks": 5,
    "min_trial_chunks": 10,
    "min_trial_episodes": 10,
    "min_trial_time_s": 5.0,
    "status_period_s": 0.5,
    "backoff_s": 0.2,
}
_POLICY = {
    "shadow_chunks": 3,
    "status_period_s": 0.5,
    "load_timeout_s": 90.0,
    "reversal_deadband": 0.05,
    "worker_threads": 1,
    "spare_worker": False,
}


def start_arm(
    processes: Processes,
    name: str,
    folder: Path,
    contract: Path,
    server: str,
    code: str,
    own: Mapping[str, Mapping[str, Any]],
    bridge: str = "vla_fleet_bridge.ros.fleet_bridge",
) -> None:
    """Start the processes of one robot, in a namespace and with a store of its own.

    Args:
        processes: takes them.
        name: of the robot, ending with its number, which is the seed of its tasks.
        folder: its store is made there.
        contract: of the arm.
        server: its address, ``http://…``.
        code: that the robot enrols with.
        own: node → parameters beside those of every demonstration. With ``recorder`` its episodes are recorded and uploaded.
        bridge: module of ``fleet_bridge``.
    """
    store = folder / "store" / name
    store.mkdir(parents=True)
    line = {"server": server.replace("http", "ws", 1), "state_dir": str(store / "fleet")}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "sim_robot": ("vla_sim.ros.sim_robot", {"seed": int(name.rpartition("_")[2])}),
        "policy_node": (
            "vla_policy_node.ros.policy_node",
            {**_POLICY, "contract": str(contract), "store_dir": str(store)},
        ),
        "ota_manager": (
            "vla_ota_manager.ros.manager_node",
            {
                **_MANAGER,
                "store_dir": str(store),
                "allowed_sources": [f"{server}/files/"],
            },
        ),
        "fleet_bridge": (bridge, {**line, "enrolment_code": code}),
    }
    if "recorder" in own:
        known = {"contract": str(contract), "recording_dir": str(store / "recordings"), "min_free_bytes": 64 << 20}
        nodes["recorder"] = ("vla_recorder.ros.recorder", {**known, **line})
    for node, (module, parameters) in nodes.items():
        processes.start(f"{name}.{node}", module, {**parameters, **own.get(node, {})}, namespace=name)
