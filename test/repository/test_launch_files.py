# SPDX-License-Identifier: Apache-2.0
"""What the launch files decide by themselves: stores, refusals, respawning."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.launch_stand_in import Node, stand_in_for_launch

from vla_adaptation.settings import AdaptationSettings
from vla_fleet_bridge.config import BridgeSettings
from vla_recorder.episodes.upload import upload_of
from vla_recorder.settings import RecorderSettings
from vla_ros.start import REFUSED

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture
def robot(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module robot.launch.py."""
    stand_in_for_launch(monkeypatch)
    spec = importlib.util.spec_from_file_location("robot_launch", TOP / "launch" / "robot.launch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launched(robot: Any, **given: str) -> list[Any]:
    """The actions that follow from these launch arguments."""
    arguments = {argument.values[0]: argument.named.get("default_value") for argument in robot.ARGUMENTS}
    arguments |= {"contract": str(TOP / "config" / "sim_arm.contract.yaml"), "fastdds_profile": ""}
    return list(robot.robot(SimpleNamespace(launch_configurations=arguments | given)))


def store(robot: Any, **given: str) -> str:
    """The one store that every node is given."""
    policy, manager, recorder = (node.parameters[2] for node in launched(robot, **given))
    stores = {policy["store_dir"], manager["store_dir"], str(Path(recorder["recording_dir"]).parent)}
    assert len(stores) == 1
    return str(stores.pop())


def test_every_namespace_however_it_is_given_has_a_store_of_its_own_and_none_lies_in_another(robot: Any) -> None:
    stores = [
        store(robot),
        store(robot, namespace="arm"),
        store(robot, ros_namespace="/left"),  # PushRosNamespace
        store(robot, ros_namespace="/left", namespace="arm"),
        store(robot, ros_namespace="/left", namespace="/right"),
    ]
    below = Path.home() / ".ros" / "vla_ota"
    assert stores == [str(below / name) for name in ("no-namespace", "arm", "left", "left.arm", "right")]
    assert store(robot, ros_namespace="/left", store_dir="~/mine") == str(Path.home() / "mine")


def test_a_node_that_refuses_to_start_is_not_started_again_and_one_that_dies_is(robot: Any) -> None:
    node = launched(robot)[0]
    assert node.respawn and node.respawn_delay > 0  # a refusal has to be heard of before that
    event = robot._stay_down(SimpleNamespace(returncode=REFUSED, action=node), None)
    assert event.named["event"].named["process_matcher"] is node
    for returncode in (0, 1, -9):
        assert robot._stay_down(SimpleNamespace(returncode=returncode, action=node), None) is None
    foreign = type("Foreign", (Node,), {"node_package": "another"})()
    assert robot._stay_down(SimpleNamespace(returncode=REFUSED, action=foreign), None) is None


def test_each_node_is_put_into_its_enclave_if_one_is_named(robot: Any) -> None:
    assert not [node for node in launched(robot) if "--enclave" in node.ros_arguments]
    named = [node.ros_arguments[-2:] for node in launched(robot, enclave="/vla_ota/")]
    assert named == [["--enclave", f"/vla_ota/{name}"] for name in ("policy_node", "ota_manager", "recorder")]


def test_fleet_starts_a_bridge_that_keeps_its_state_with_the_policy_and_lets_the_manager_fetch_from_there(
    robot: Any,
) -> None:
    assert [node.name for node in launched(robot)] == ["policy_node", "ota_manager", "recorder"]
    assert [node.name for node in launched(robot, recorder="false")] == ["policy_node", "ota_manager"]
    _, manager, recorder, bridge = launched(robot, namespace="arm", fleet="wss://fleet.example:8443", fleet_code="c0de")
    own = bridge.parameters[2]
    assert bridge.executable == bridge.name == "fleet_bridge" and bridge.namespace == "arm" and bridge.respawn
    assert own == {
        "server": "wss://fleet.example:8443",
        "enrolment_code": "c0de",
        "state_dir": str(Path(manager.parameters[2]["store_dir"], "fleet")),
    }
    assert BridgeSettings(**own).folder.is_relative_to(Path.home())
    sends = upload_of(RecorderSettings(**recorder.parameters[2]))
    assert sends is not None and sends.token_file == BridgeSettings(**own).token_file
    assert sends.server == "https://fleet.example:8443"
    alone = RecorderSettings(**launched(robot)[2].parameters[2])
    assert upload_of(alone) is None, "nothing leaves a robot without a fleet"
    assert manager.parameters[2]["allowed_sources"] == ["https://fleet.example:8443/files/"]


def test_adaptation_is_off_unless_asked_for_and_then_the_manager_may_fetch_what_it_makes(robot: Any) -> None:
    assert "adapter_dir" not in launched(robot)[1].parameters[2]
    _, manager, recorder, adaptation, _ = launched(robot, adaptation="true", fleet="wss://fleet.example")
    own = adaptation.parameters[2]
    assert adaptation.executable == adaptation.name == "adaptation"
    settings = AdaptationSettings(**own)
    assert settings.episodes.is_relative_to(recorder.parameters[2]["recording_dir"])
    assert own["store_dir"] == manager.parameters[2]["store_dir"] and settings.server == "wss://fleet.example"
    assert Path(manager.parameters[2]["adapter_dir"]) == settings.folder / "offers"


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("fleet", "https://fleet.example"),
        ("namespace", "1arm"),
        ("contract", "~/nowhere.yaml"),
        ("fastdds_profile", "/nowhere.xml"),
        ("model_path", "~/none"),
    ],
)
def test_what_no_node_could_start_with_ends_the_launch(robot: Any, argument: str, value: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{argument}:="):
        launched(robot, **{argument: value})


def test_what_a_policy_of_ones_own_needs_is_given_as_arguments(robot: Any) -> None:
    given = {"worker_paths": "~/ws/policies /opt/more", "policy_modules": "a=b.c d=e"}
    policy = launched(robot, **given)[0].parameters[2]
    assert policy["worker_paths"] == [str(Path.home() / "ws" / "policies"), "/opt/more"]
    assert policy["policy_modules"] == ["a=b.c", "d=e"]
    assert not {"worker_paths", "policy_modules"} & launched(robot)[0].parameters[2].keys()


def test_the_machine_that_policies_run_on_is_given_as_arguments(robot: Any) -> None:
    policy = launched(robot, worker_host="10.0.0.7:7447", worker_tls="~/tls")[0].parameters[2]
    assert (policy["worker_host"], policy["worker_tls"]) == ("10.0.0.7:7447", str(Path.home() / "tls"))
    assert not {"worker_host", "worker_tls"} & launched(robot)[0].parameters[2].keys()
