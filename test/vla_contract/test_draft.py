# SPDX-License-Identifier: Apache-2.0
"""A draft holds what is known, leaves open what is not, and is a contract as soon as a person has filled in the rest."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.engine_rig import EngineRig
from support.scripted import scripted_bundle

from vla_contract.checking import check
from vla_contract.cli import main
from vla_contract.dataset import read_dataset
from vla_contract.joining import join
from vla_contract.seen import Camera, Command, DatasetSeen, Joints, RobotSeen, Topic
from vla_contract.urdf import parse_limits
from vla_contract.writing import write
from vla_policy_node.contract.model import parse_contract
from vla_policy_node.errors import ContractError

ARM = ("pan", "lift")
JOINT_STATES = Joints("/joint_states", "sensor_msgs/msg/JointState", 100.0, True, ("lift", "pan_joint", "gripper"))
MULTI, TRAJECTORY = "std_msgs/msg/Float64MultiArray", "trajectory_msgs/msg/JointTrajectory"
ARM_COMMAND = Command(
    "/arm_controller/joint_trajectory", TRAJECTORY, "/arm_controller", ("pan_joint", "lift"), "position"
)
GRIPPER = Command("/gripper_controller/commands", MULTI, "/gripper_controller", ("gripper",), "position")
WRIST = Camera("/wrist_camera/image_raw", "sensor_msgs/msg/Image", 30.0, True, (480, 640), "rgb8")
TOP = Camera("/overhead/image_raw", "sensor_msgs/msg/Image", 30.0, False, (720, 1280), "bgr8")
ROBOT = RobotSeen((TOP, WRIST), (JOINT_STATES,), (), (ARM_COMMAND, GRIPPER))
URDF = b"""<robot name="r"><joint name="lift" type="revolute"><limit lower="-1.5" upper="1.25" velocity="3"/></joint>
<joint name="wheel" type="continuous"/>
<joint name="gripper" type="prismatic"><limit lower="0" upper="0.04" velocity="1"/></joint></robot>"""


def dataset(folder: Path, *, stats: bool = False, **changes: Any) -> DatasetSeen:
    """A LeRobot dataset's metadata: pan, lift and gripper, cameras wrist and front."""
    names = ["pan.pos", "lift.pos", "gripper.pos"]
    picture = {"dtype": "video", "shape": [480, 640, 3], "names": ["height", "width", "channels"]}
    info = {
        "robot_type": "so_arm",
        "fps": 30,
        "features": {
            "action": {"dtype": "float32", "shape": [3], "names": names},
            "observation.images.wrist": picture,
            "observation.images.front": {**picture, "shape": [720, 1280, 3]},
            "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": names}},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        },
        **changes,
    }
    (folder / "meta").mkdir(exist_ok=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    if stats:
        ranges = {"min": [-98.0, -1.2, 0.0], "max": [99.0, 1.1, 0.04]}
        (folder / "meta" / "stats.json").write_text(json.dumps({"action": ranges}))
    return read_dataset(str(folder))


def drafted(*arguments: Any, **named: Any) -> Any:
    """The draft as YAML reads it."""
    return yaml.safe_load(write(join(*arguments, **named), "a test"))


def topic_of(document: Any, key: str) -> str:
    return str(document["observations"][key]["channel"]["topic"])


def test_a_dataset_and_a_robot_are_joined_by_names_and_sizes(tmp_path: Path) -> None:
    document = drafted(ROBOT, dataset(tmp_path), {})
    assert document["robot_type"] == "so_arm" and document["fps"] == 30
    assert topic_of(document, "observation.images.wrist") == "wrist_camera/image_raw"
    front = document["observations"]["observation.images.front"]
    assert front["channel"]["topic"] == "overhead/image_raw" and front["apply"] == [{"resize": [720, 1280]}]
    assert front["align"]["timeline"] == "receive"  # its stamps are off
    state = document["observations"]["observation.state"]
    assert state["channel"]["topic"] == "joint_states" and state["align"] == {"strategy": "hold", "timeline": "header"}
    assert state["select"] == ["position.pan_joint", "position.lift", "position.gripper"]
    arm, gripper = document["actions"]["action"]
    assert arm["select"] == ["position.pan_joint", "position.lift"] and arm["channel"]["type"] == TRAJECTORY
    assert gripper["channel"]["topic"] == "gripper_controller/commands" and gripper["select"] == ["data.0"]
    assert [c["measured"] for c in document["safety"]["channels"]] == state["select"]


def test_no_safety_value_is_ever_made_up(tmp_path: Path) -> None:
    safety = drafted(ROBOT, dataset(tmp_path, stats=True), parse_limits(URDF))["safety"]
    known = {("lift", "position"): [-1.5, 1.25], ("gripper", "position"): [0, 0.04]}  # the description's
    for channel in safety["channels"]:
        assert all(channel[key] == "TODO" for key in ("hold", "max_decel", "hold_timeout_s", "rest_step", "unit"))
        for key, value in channel["limits"].items():
            assert value == known.get((channel["name"], key), "TODO")
    assert safety["motion_enabled"] == {"required": "TODO", "timeout_s": "TODO"}
    assert safety["observation_max_age_ms"] == "TODO"


def test_what_can_be_joined_in_several_ways_is_left_to_a_person_with_the_choices_named(tmp_path: Path) -> None:
    seen = dataset(tmp_path)
    twins = replace(ROBOT, cameras=(replace(TOP, name="/a"), replace(TOP, name="/b")))
    document, text = drafted(twins, seen, {}), write(join(twins, seen, {}), "a test")
    assert topic_of(document, "observation.images.front") == "TODO" and "one of /a, /b" in text
    both = (ARM_COMMAND, GRIPPER, Command("/all/commands", MULTI, "/all", ("lift", "pan", "gripper")))
    text = write(join(replace(ROBOT, commands=both), seen, {}), "a test")
    assert "TODO" in text and "/arm_controller/joint_trajectory" in text and "--commands TOPIC" in text
    one = drafted(replace(ROBOT, commands=both[2:]), seen, {})["actions"]["action"]
    assert one[0]["select"] == ["data.1", "data.0", "data.2"]  # the controller's order, not the dataset's
    elsewhere = (JOINT_STATES, replace(JOINT_STATES, name="/leader/joint_states"))
    assert topic_of(drafted(replace(ROBOT, states=elsewhere), seen, {}), "observation.state") == "TODO"


def test_an_action_that_goes_to_and_fro_between_two_controllers_is_left_open(tmp_path: Path) -> None:
    names = ["pan.pos", "gripper.pos", "lift.pos"]
    features = {"action": {"dtype": "float32", "shape": [3], "names": names}}
    (output,) = drafted(ROBOT, dataset(tmp_path, features=features), {})["actions"]["action"]
    assert output["channel"]["topic"] == "TODO" and output["select"] == ["TODO"] * 3


def test_a_robot_alone_gives_its_topics_and_a_dataset_alone_its_features(tmp_path: Path) -> None:
    noise = Topic("/wrench", "geometry_msgs/msg/WrenchStamped", 500.0)
    compressed = replace(WRIST, name="/wrist_camera/image_raw/compressed")
    seen = replace(ROBOT, others=(noise,), cameras=(*ROBOT.cameras, compressed))
    document = drafted(seen, None, {}, "/")
    assert set(document["observations"]) == {
        "observation.images.overhead",
        "observation.images.wrist",
        "observation.state",
    }
    assert document["fps"] == document["robot_type"] == "TODO"
    assert [c["name"] for c in document["safety"]["channels"]] == ["pan_joint", "lift", "gripper"]
    assert {c["mode"] for c in document["safety"]["channels"]} == {"TODO"}
    assert "/wrench [geometry_msgs/msg/WrenchStamped] 500 Hz" in write(join(seen, None, {}), "a test")
    document = drafted(RobotSeen(), dataset(tmp_path), {})
    assert topic_of(document, "observation.state") == "TODO"
    assert document["observations"]["observation.state"]["select"][0] == "position.pan"
    assert [c["mode"] for c in document["safety"]["channels"]] == ["absolute"] * 3


def test_numbers_without_names_are_counted_and_left_open(tmp_path: Path) -> None:
    unnamed = {"dtype": "float32", "shape": [2], "names": None}
    seen = dataset(tmp_path, features={"action": unnamed, "observation.state": unnamed})
    document = drafted(ROBOT, seen, {})
    assert document["observations"]["observation.state"]["select"] == ["TODO", "TODO"]
    assert [channel["name"] for channel in document["safety"]["channels"]] == ["TODO", "TODO"]
    base = RobotSeen(commands=(Command("/cmd_vel", "geometry_msgs/msg/Twist", "/base"),))
    (output,) = drafted(base, None, {})["actions"]["action"]
    assert output["channel"]["topic"] == "cmd_vel" and output["select"] == ["TODO"]


def test_topics_of_the_policys_namespace_are_named_relative_to_it(tmp_path: Path) -> None:
    states = (replace(JOINT_STATES, name="/left/joint_states"),)
    document = drafted(replace(ROBOT, states=states), dataset(tmp_path), {}, "/left")
    assert topic_of(document, "observation.state") == "joint_states"
    assert topic_of(document, "observation.images.wrist") == "/wrist_camera/image_raw"


def test_the_datasets_ranges_say_whether_the_unit_can_be_the_descriptions(tmp_path: Path) -> None:
    text = write(
        join(ROBOT, dataset(tmp_path, stats=True), {**parse_limits(URDF), "pan": parse_limits(URDF)["lift"]}), "t"
    )
    pan, lift = (next(line for line in text.splitlines() if words in line) for words in ("-98 to 99", "-1.2 to 1.1"))
    assert "not rad" in pan and "rad2deg" in pan
    assert "not rad" not in lift


@pytest.mark.parametrize(
    "hostile", ["a: [1", "x#y", "- z", "'", "*anchor", "1.5", "null", "ä\nb", "TODO", "a\nsafety: {auto_resume: true}"]
)
def test_names_from_outside_cannot_break_the_file(tmp_path: Path, hostile: str) -> None:
    names = [hostile, "lift.pos", "gripper.pos"]
    features = {
        "action": {"dtype": "float32", "shape": [3], "names": names},
        f"observation.{hostile}": {"dtype": "float32", "shape": [3], "names": names},
    }
    document = drafted(RobotSeen(), dataset(tmp_path, features=features, robot_type=hostile), {})
    assert [c["name"] for c in document["safety"]["channels"]] == [hostile, "lift", "gripper"]
    assert list(document["observations"]) == [f"observation.{hostile}"] and document["robot_type"] == hostile


# -- check, and what a person fills in ------------------------------------------------------------------------------------


def test_every_open_value_is_refused_and_listed_with_line_and_meaning(tmp_path: Path) -> None:
    text = write(join(ROBOT, dataset(tmp_path), parse_limits(URDF)), "a test")
    file = tmp_path / "arm.yaml"
    file.write_text(text)
    with pytest.raises(ContractError) as refused:
        parse_contract(text, file)
    assert refused.value.code == "CONTRACT_TODO" and "arm.yaml: safety." in refused.value.message
    problems = check(str(file))
    lines = text.splitlines()
    assert len(problems) == sum(bool(re.search(r"\bTODO\b", line.partition("#")[0])) for line in lines) > 15
    for problem in problems:
        path, _, meaning = problem.text.partition(": ")
        assert "TODO" in lines[problem.line - 1] and meaning
        assert path.rpartition(".")[2] in lines[problem.line - 1]


def fill_in(text: str) -> str:
    """What a person does: a value for every TODO, by its key."""
    values = {
        "unit": "rad", "position": "[-2.0, 2.0]", "velocity": "4.0", "step": "0.3", "hold": "last_command", "max_decel": "40.0",
        "hold_timeout_s": "30.0", "rest_step": "0.001", "required": "false", "timeout_s": "0.5", "observation_max_age_ms": "250",
    }  # fmt: skip
    return re.sub(r"(\w+): TODO", lambda match: f"{match[1]}: {values[match[1]]}", text)


def test_a_draft_runs_a_robot_once_a_person_has_filled_it_in(tmp_path: Path) -> None:
    numbers = {"dtype": "float32", "shape": [2], "names": ["j1.pos", "j2.pos"]}
    seen = dataset(tmp_path, robot_type="sim_arm", fps=50, features={"action": numbers, "observation.state": numbers})
    joints = ("j1", "j2")
    controller = Command("/forward/commands", MULTI, "/forward", joints, "position")
    robot = RobotSeen(
        states=(Joints("/joint_states", "sensor_msgs/msg/JointState", 100.0, False, joints),), commands=(controller,)
    )
    text = fill_in(write(join(robot, seen, {}), "a test"))
    bundle = scripted_bundle(tmp_path / "bundle")
    with EngineRig(tmp_path, text=text, model_path=str(tmp_path / "bundle")) as rig:
        rig.wait_running(bundle.version)
        assert rig.engine.contract.channels[1].measured == ("observation.state", 1)


def test_check_names_what_is_wrong_beside_what_is_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "arm.yaml"
    text = (Path(__file__).parents[2] / "config" / "sim_arm.contract.yaml").read_text()
    file.write_text(text)
    assert main(["check", str(file)]) == 0 and "complete" in capsys.readouterr().out
    file.write_text(text.replace("hold: last_command", "hold: float_away"))
    assert main(["check", str(file)]) == 1
    line = next(i for i, row in enumerate(text.splitlines(), 1) if "hold: last_command" in row)
    shown = capsys.readouterr().out
    assert f"arm.yaml:{line}: CONTRACT_VALUE_INVALID: safety.channels[0].hold: " in shown
    text = text.replace("measured: position.j2", "measured: elbow").replace("hold: last_command", "hold: TODO")
    file.write_text(text.replace("name: j3", "nam: j3"))
    assert main(["check", str(file)]) == 1
    shown = capsys.readouterr().out
    assert shown.count("CONTRACT_TODO: safety.channels[0].hold") == 1  # said once, taken by all
    file.write_text(text.replace("hold: TODO", "hold: measured").replace("name: j3", "nam: j3"))
    assert main(["check", str(file)]) == 1
    shown = capsys.readouterr().out
    assert (
        "channels[1].measured" in shown and "channels[2].nam: " in shown and "2 to be filled in or corrected" in shown
    )
    for broken, named in (("a: [", "CONTRACT_SYNTAX"), ("[" * 5000, "CONTRACT_SYNTAX"), ("on: 1", "quote it")):
        file.write_text(broken)
        assert main(["check", str(file)]) == 1 and named in capsys.readouterr().out


# -- what cannot be drafted -------------------------------------------------------------------------------------------------


def test_init_writes_a_file_once_and_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path)
    arguments = ["init", "--from-dataset", str(tmp_path), "--out", str(tmp_path / "arm.yaml")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"{len(check(str(tmp_path / 'arm.yaml')))} values are left" in said and "vla-contract check" in said
    before = (tmp_path / "arm.yaml").read_text()
    assert main(arguments) == 1 and "CONTRACT_EXISTS" in capsys.readouterr().err
    assert (tmp_path / "arm.yaml").read_text() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fps": 0}, "fps"),
        ({"features": []}, "features"),
        ({"features": {}}, "action"),
        ({"features": {"action": 3}}, "features.action"),
        ({"features": {"action": {"dtype": "float32", "shape": [0]}}}, "shape"),
        ({"features": {"action": {"dtype": "float32", "shape": [10**7]}}}, "10000000 numbers, a contract at most 256"),
        ({"features": {"observation.images.x": {"dtype": "video", "shape": [3]}}}, "observation.images.x"),
    ],
)
def test_a_folder_that_is_no_dataset_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exception, match=re.escape(named)):
        dataset(tmp_path, **changes)
    assert main(["init", "--from-dataset", str(tmp_path), "--out", str(tmp_path / "arm.yaml")]) == 1
    assert capsys.readouterr().err.startswith("DATASET_INVALID: ") and not (tmp_path / "arm.yaml").exists()


@pytest.mark.parametrize(
    "text", [b"<robot", b'<robot><joint name="a" type="revolute"><limit lower="${pi}"/></joint></robot>']
)
def test_a_description_that_is_no_urdf_is_refused(
    tmp_path: Path, text: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(tmp_path)
    (tmp_path / "arm.urdf").write_bytes(text)
    arguments = ["--from-urdf", str(tmp_path / "arm.urdf"), "--out", str(tmp_path / "arm.yaml")]
    assert main(["init", "--from-dataset", str(tmp_path), *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("URDF_INVALID: ") and ("xacro" in said) == (b"$" in text)


def test_nothing_to_look_at_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as e:
        main(["init", "--out", str(tmp_path / "arm.yaml")])
    assert e.value.code == 2
