# SPDX-License-Identifier: Apache-2.0
"""The contracts for robots that teams have: they run, fit the vendors' limits and controllers, and wrong wiring is found."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from support.camera_messages import compressed
from support.doctor_robot import run_doctor
from support.engine_rig import EngineRig
from support.launch_stand_in import stand_in_for_launch
from support.scripted import scripted_bundle

from vla_checkpoint import Channel
from vla_contract.checking import check
from vla_doctor.findings import Finding, Level
from vla_doctor.settings import DoctorSettings
from vla_doctor.wiring import examine_list
from vla_ota_manager.config import OtaConfig
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.contract.model import Contract, load_contract
from vla_policy_node.control.sinks import read_record

EXAMPLES = Path(__file__).parents[2] / "examples"
HOME = {"so101": "/follower", "ur5e": "/", "franka_fr3": "/"}
ROBOTS = sorted(HOME)
VENDOR = {
    # TheRobotStudio/SO-ARM100, Simulation/SO101/so101_new_calib.urdf; speed: an STS3215 at 7.4 V without load
    "so101": [
        (-1.91986, 1.91986, 4.7), (-1.74533, 1.74533, 4.7), (-1.69, 1.69, 4.7), (-1.65806, 1.65806, 4.7),
        (-2.79253, 2.79253, 4.7), (-0.174533, 1.74533, 4.7),
    ],
    # Universal_Robots_ROS2_Description, config/ur5e/joint_limits.yaml; ros2_robotiq_gripper, gripper_closed_position
    "ur5e": [*[(-6.2832, 6.2832, 3.1416)] * 2, (-3.1416, 3.1416, 3.1416), *[(-6.2832, 6.2832, 3.1416)] * 3, (0.0, 0.7929, 2.0)],
    # franka_description, robots/fr3/joint_limits.yaml and end_effectors/franka_hand
    "franka_fr3": [
        (-2.7437, 2.7437, 2.62), (-1.7837, 1.7837, 2.62), (-2.9007, 2.9007, 2.62), (-3.0421, -0.1518, 2.62),
        (-2.8065, 2.8065, 5.26), (0.5445, 4.5169, 4.18), (-3.0159, 3.0159, 5.26), (0.0, 0.04, 0.2),
    ],
}  # fmt: skip


def contract_file(robot: str) -> Path:
    return EXAMPLES / robot / f"{robot}.contract.yaml"


def in_namespace(topic: str, namespace: str) -> str:
    return topic if topic.startswith("/") else f"{namespace.rstrip('/')}/{topic}"


def doctor(robot: str, listed: Path, namespace: str = "") -> list[Finding]:
    settings = DoctorSettings(contract=str(contract_file(robot)), topics=str(listed))
    return examine_list(in_namespace, namespace or HOME[robot], settings)


def problems(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.level is not Level.OK]


# -- the contracts ----------------------------------------------------------------------------------------------------------


class ExampleRig(EngineRig):
    """The engine on an ideal robot of any contract."""

    def _feed(self) -> None:
        contract = self.engine.contract
        position = np.array([(c.limits.low + c.limits.high) / 2 for c in contract.channels])
        picture = compressed(np.zeros((4, 4, 3), np.uint8))
        while not self._stop.wait(0.01):
            status = self.engine.snapshot().control
            if status is not None and np.all(np.isfinite(status.command)):
                position = status.command
            values = {c.measured: float(v) for c, v in zip(contract.channels, position, strict=True)}
            now_ns = time.time_ns()
            header = SimpleNamespace(stamp=SimpleNamespace(sec=now_ns // 10**9, nanosec=now_ns % 10**9))
            for observation in contract.observations:
                index = 0
                for i, source in enumerate(observation.sources):
                    names = [field.partition(".")[2] for field in source.select]
                    numbers = [values.get((observation.key, index + n), 0.0) for n in range(len(names))]
                    index += len(names)
                    joints = SimpleNamespace(name=names, position=numbers, velocity=[], effort=[])
                    message = picture if source.picture is not None else joints
                    message.header = header
                    self.engine.observations.receive(observation.key, i, message, ros_now_ns=now_ns)
            self.engine.observations.set_motion(True)

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Wait; and resume, as a person would, where the machine stalled for so long that the observations were stale."""

        def holds() -> bool:
            status = self.snapshot.control
            if status is not None and status.latched:
                self.engine.resume()
            return condition()

        super().wait_for(holds, what, timeout_s)


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_policy_drives_the_robot_of_each_example_inside_its_limits(robot: str, tmp_path: Path) -> None:
    text = contract_file(robot).read_text()
    contract = load_contract(contract_file(robot))
    low, high = (np.array([getattr(c.limits, bound) for c in contract.channels]) for bound in ("low", "high"))
    bundle = scripted_bundle(
        tmp_path / "bundle", channels=[Channel(c.name, c.unit, c.mode) for c in contract.channels], rate_hz=contract.rate_hz,
        robot_type=contract.robot_type, offset=(low + high) / 2, amplitude=(high - low) / 20,
    )  # fmt: skip
    with ExampleRig(tmp_path, text=text, model_path=str(tmp_path / "bundle")) as rig:
        rig.wait_running(bundle.version)

        def all_moved() -> bool:
            """Every joint and the gripper."""
            commands = read_record(rig.record, len(low))[1]
            return len(commands) > 10 and bool(np.all(np.abs(np.diff(commands, axis=0)).max(axis=0) > 0))

        rig.wait_for(all_moved, "ten commands, and a move of each joint")
    _, commands = read_record(rig.record, len(low))
    assert np.all(commands >= low) and np.all(commands <= high)


@pytest.mark.parametrize("robot", ROBOTS)
def test_limits_lie_inside_the_vendors_and_nothing_is_left_open(robot: str) -> None:
    assert not check(str(contract_file(robot)))
    contract = load_contract(contract_file(robot))
    for channel, (low, high, velocity) in zip(contract.channels, VENDOR[robot], strict=True):
        limits = channel.limits
        assert low <= limits.low < limits.high <= high and limits.rate < velocity, channel.name
    assert not contract.auto_resume


def joints_of(section: Any) -> dict[str, list[str]]:
    """Controller → joints, wherever it stands in a parameters file."""
    found: dict[str, list[str]] = {}
    for name, value in section.items():
        if isinstance(value, dict):
            found |= (
                {name: value["ros__parameters"]["joints"]}
                if "joints" in value.get("ros__parameters", {})
                else joints_of(value)
            )
    return found


@pytest.mark.parametrize("robot", ROBOTS)
def test_each_number_of_a_command_measures_the_joint_that_the_controller_moves(robot: str) -> None:
    controllers = joints_of(yaml.safe_load((EXAMPLES / robot / f"{robot}.controllers.yaml").read_text()))
    contract = load_contract(contract_file(robot))
    seen = 0
    for output in contract.outputs:
        joints = controllers.get(output.topic.partition("/")[0])
        if joints is None:
            continue
        seen += 1
        channels = contract.channels[output.start : output.stop]
        measured = [field_of(contract, channel.measured).partition(".")[2] for channel in channels]
        places = (
            [int(s.removeprefix("data.")) for s in output.select]
            if output.select[0].startswith("data.")
            else range(len(joints))
        )
        assert [joints[place] for place in places] == measured
    assert seen == len(controllers) >= 1


def field_of(contract: Contract, place: tuple[str, int] | None) -> str:
    assert place is not None
    return [s for o in contract.observations if o.key == place[0] for source in o.sources for s in source.select][
        place[1]
    ]


# -- doctor --topics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_doctor_finds_nothing_in_the_list_of_what_the_drivers_publish(robot: str) -> None:
    found = doctor(robot, EXAMPLES / robot / "topics.txt")
    contract = load_contract(contract_file(robot))
    topics = sum(len(o.sources) for o in contract.observations) + len(contract.outputs) + contract.motion.required
    assert not problems(found) and len(found) == 1 + topics


@pytest.mark.parametrize(
    ("robot", "change", "code", "named"),
    [
        ("so101", lambda t: t.replace("/follower/joint_states", "/follower/states"), "TOPIC_MISSING", "/follower/states"),
        ("so101", lambda t: t.replace("image_raw/compressed [", "image_raw/theora2 ["), "TOPIC_MISSING", "compressedDepth"),
        ("so101", lambda t: t.replace("/follower/", "/arm/"), "NAMESPACE_DIFFERS", "namespace:=/arm"),
        ("ur5e", lambda t: t.replace("/scaled_joint", "/joint"), "COMMAND_UNHEARD", "/joint_trajectory_controller/"),
        ("ur5e", lambda t: t.replace("/gripper_position_controller/commands [std_msgs/msg/Float64MultiArray]",
                                     "/gripper_position_controller/commands [control_msgs/msg/GripperCommand]"),
         "TOPIC_TYPE", "type: control_msgs/msg/GripperCommand"),
        ("franka_fr3", lambda t: t.replace("/hand_relay/finger_position", "/hand/width"), "COMMAND_UNHEARD", "/hand/width"),
    ],
)  # fmt: skip
def test_a_wrong_wiring_is_found_at_a_desk_with_what_to_do(
    robot: str, change: Callable[[str], str], code: str, named: str, tmp_path: Path
) -> None:
    listed = tmp_path / "topics.txt"
    listed.write_text(change((EXAMPLES / robot / "topics.txt").read_text()))
    found = problems(doctor(robot, listed))
    assert {finding.code for finding in found} == {code}
    assert all(named in finding.remedy for finding in found[:1])


def test_ros2_run_doctor_takes_the_list_and_needs_no_robot(ros_domain: int) -> None:
    given = ["--contract", str(contract_file("so101")), "--topics", str(EXAMPLES / "so101" / "topics.txt")]
    verdict = run_doctor(ros_domain, *given, "--namespace", "/follower")
    assert verdict.exit_status == 0 and any(f["what"].endswith("/follower/joint_states") for f in verdict.findings)
    elsewhere = run_doctor(ros_domain, *given)
    assert elsewhere.exit_status == 1 and elsewhere.one("NAMESPACE_DIFFERS")
    remapped = run_doctor(ros_domain, *given, "--namespace", "/follower", ros=["-r", "joint_states:=states"])
    assert "/follower/joint_states" in remapped.one("TOPIC_MISSING")["remedy"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "/joint_states\n", "[INFO] daemon\n/a [b/msg/C]\n"])
def test_what_is_no_list_of_topics_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text(text)
    (finding,) = problems(doctor("ur5e", tmp_path / "topics.txt"))
    assert finding.code == "TOPICS_UNREADABLE" and "ros2 topic list -t" in finding.remedy
    assert problems(doctor("ur5e", tmp_path / "none.txt"))[0].code == "TOPICS_UNREADABLE"


# -- launch files and parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_launch_file_starts_the_robot_with_its_own_files(robot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_launch(monkeypatch)
    spec = importlib.util.spec_from_file_location(f"{robot}_launch", EXAMPLES / robot / f"{robot}.launch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    *own, included = module.generate_launch_description().values[0]
    defaults = {a.values[0]: a.named["default_value"] for a in own if "default_value" in a.named}
    assert Path(defaults["contract"]) == contract_file(robot) and Path(defaults["params_file"]).is_file()
    assert f"/{defaults['namespace']}" == HOME[robot]
    assert (
        Path(included.values[0].values[0]).name == "robot.launch.py"
        and dict(included.named["launch_arguments"])["contract"]
    )
    for node in own[3:]:
        assert node.executable == sys.executable and Path(node.arguments[0]).is_file()


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_parameters_are_ones_that_the_nodes_have_and_name_this_robot(robot: str) -> None:
    document = yaml.safe_load((EXAMPLES / robot / f"{robot}.params.yaml").read_text())
    for name, settings in (("policy_node", PolicyNodeConfig), ("ota_manager", OtaConfig)):
        types = {f.name: type(f.default) for f in dataclasses.fields(settings)}
        for key, value in document.pop(f"/**/{name}")["ros__parameters"].items():
            assert type(value) is types[key], key
            if key == "robot_type":
                assert value == load_contract(contract_file(robot)).robot_type
    assert not document
