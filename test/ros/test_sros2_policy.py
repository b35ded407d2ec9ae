# SPDX-License-Identifier: Apache-2.0
"""config/sros2.policy.xml allows what the nodes do on the graph, and nothing else."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from rclpy.node import Node
from support.ros import NodeProcess, RosHarness
from support.waits import wait_for

TOP = Path(__file__).resolve().parents[2]
Names = dict[str, set[str]]
"""What a node publishes, subscribes to, replies to, requests, executes (actions) and calls."""


def allowed(profile: ET.Element) -> Names:
    found: Names = {kind: set() for kind in ("publish", "subscribe", "reply", "request", "execute", "call")}
    own = profile.attrib["ns"].rstrip("/")
    for rules in profile:
        (kind, verdict), *more = rules.attrib.items()
        assert verdict == "ALLOW" and not more
        for rule in rules:
            text = (rule.text or "").replace("~", f"{own}/{profile.attrib['node']}", 1)
            found[kind].add(text if text.startswith("/") else f"{own}/{text}")
    return found


def used(node: Node, name: str) -> Names:
    """What the node of that name does; an action is known by its topics and services."""

    def split(names: list[tuple[str, list[str]]]) -> tuple[set[str], set[str]]:
        plain = {n for n, _ in names if "/_action/" not in n}
        return plain, {n.partition("/_action/")[0] for n, _ in names if "/_action/" in n}

    published, executed = split(node.get_publisher_names_and_types_by_node(name, "/"))
    subscribed, _ = split(node.get_subscriber_names_and_types_by_node(name, "/"))
    replied, _ = split(node.get_service_names_and_types_by_node(name, "/"))
    requested, called = split(node.get_client_names_and_types_by_node(name, "/"))
    return {
        "publish": published, "subscribe": subscribed, "reply": replied,
        "request": requested, "execute": executed, "call": called,
    }  # fmt: skip


def test_the_policy_for_sros2_allows_what_each_node_does_and_no_more(ros_domain: int, tmp_path: Path) -> None:
    root = ET.parse(TOP / "config" / "sros2.policy.xml").getroot()
    profiles = {p.attrib["node"]: allowed(p) for p in root.iter("profile")}
    contract, store = str(TOP / "config" / "sim_arm.contract.yaml"), str(tmp_path / "store")
    shared = {"store_dir": store, "use_sim_time": True}  # with it they also listen to /clock
    policy = {"contract": contract, "worker_imports": [""], **shared}
    recorder = {"contract": contract, "recording_dir": str(tmp_path / "recordings"), "use_sim_time": True}
    adaptation = {**shared, "adaptation_dir": str(tmp_path / "adaptation"), "recording_dir": recorder["recording_dir"]}
    with (
        NodeProcess("vla_policy_node.ros.policy_node", ros_domain, tmp_path, parameters=policy),
        NodeProcess("vla_ota_manager.ros.manager_node", ros_domain, tmp_path, parameters=shared),
        NodeProcess("vla_recorder.ros.recorder", ros_domain, tmp_path, parameters=recorder),
        NodeProcess("vla_adaptation.ros.adaptation", ros_domain, tmp_path, parameters=adaptation),
        RosHarness(ros_domain) as ros,
    ):
        for name, rules in profiles.items():
            wait_for(lambda n=name: n in dict(ros.node.get_node_names_and_namespaces()), name)
            wait_for(lambda n=name, r=rules: used(ros.node, n) == r, f"what {name} does to be {rules}")
