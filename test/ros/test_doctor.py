# SPDX-License-Identifier: Apache-2.0
"""The doctor on real nodes: each broken thing gets its line, its remedy and the exit status; a sound robot gets none."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from geometry_msgs.msg import TwistStamped
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Float32, Float64, Float64MultiArray
from support.bundles import make_bundle
from support.doctor_robot import Publishers, StandInPolicy, Verdict, run_doctor
from support.ros import NodeProcess, RosHarness
from vla_ota.msg import ModelStatus, PolicyStatus

from vla_checkpoint import Channel, verify_bundle
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.store import Store
from vla_ros import qos
from vla_sim.dds import claim_domain

TOP = Path(__file__).resolve().parents[2]
ARM = TOP / "config/sim_arm.contract.yaml"
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)

BROKEN = """
robot_type: sim_arm
fps: 50
observations:
  observation.images.gone:
    channel: {topic: camera/gone, type: sensor_msgs/msg/Image}
    align: &fresh {strategy: asof, timeline: receive, tolerance_ms: 200}
    apply: [resize: [8, 8]]
  observation.images.depth:
    channel: {topic: camera/depth, type: sensor_msgs/msg/Image}
    align: *fresh
    apply: [resize: [8, 8]]
  observation.state:
    channel: {topic: joint_states, type: sensor_msgs/msg/JointState}
    align: *fresh
    select: [position.j1, position.j2, position.j3, position.j4]
  observation.reliable:
    channel: {topic: reliable, type: std_msgs/msg/Float64, qos: {reliability: reliable}}
    align: *fresh
    select: [data]
  observation.durable:
    channel: {topic: durable, type: std_msgs/msg/Float64, qos: {durability: transient_local}}
    align: *fresh
    select: [data]
  observation.type:
    channel: {topic: typed, type: std_msgs/msg/Float32}
    align: *fresh
    select: [data]
  observation.slow:
    channel: {topic: slow, type: std_msgs/msg/Float64}
    align: *fresh
    select: [data]
  observation.silent:
    channel: {topic: silent, type: std_msgs/msg/Float64}
    align: *fresh
    select: [data]
  observation.twice:
    channel: {topic: twice, type: std_msgs/msg/Float64}
    align: *fresh
    select: [data]
  observation.future:
    channel: {topic: future, type: geometry_msgs/msg/TwistStamped}
    align: &stamped {strategy: asof, timeline: header, tolerance_ms: 200}
    select: [twist.linear.x]
  observation.old:
    channel: {topic: old, type: geometry_msgs/msg/TwistStamped}
    align: *stamped
    select: [twist.linear.x]
  observation.unstamped:
    channel: {topic: unstamped, type: geometry_msgs/msg/TwistStamped}
    align: *stamped
    select: [twist.linear.x]
  observation.ignored_stamps:
    channel: {topic: ignored_stamps, type: geometry_msgs/msg/TwistStamped}
    align: *fresh
    select: [twist.linear.x]
actions:
  action:
    - {channel: {topic: shared, type: std_msgs/msg/Float64MultiArray}, select: [data.0]}
    - {channel: {topic: unheard, type: std_msgs/msg/Float64MultiArray}, select: [data.0]}
    - {channel: {topic: misread, type: std_msgs/msg/Float64MultiArray}, select: [data.0]}
    - {channel: {topic: demanding, type: std_msgs/msg/Float64MultiArray}, select: [data.0]}
safety:
  motion_enabled: {required: true, timeout_s: 0.5}
  observation_max_age_ms: 250
  channels:
    - &joint
      name: j1
      unit: rad
      mode: absolute
      measured: position.j1
      limits: {position: [-1.6, 1.6], velocity: 2.5, step: 0.15}
      hold: last_command
      max_decel: 20.0
      hold_timeout_s: 5.0
      rest_step: 0.0005
    - {<<: *joint, name: j2, measured: position.j2}
    - {<<: *joint, name: j3, measured: position.j3}
    - {<<: *joint, name: j4, measured: position.j4}
"""


def stamped(ros: RosHarness, ahead_s: float) -> TwistStamped:
    message = TwistStamped()
    message.header.stamp = (ros.node.get_clock().now() + Duration(seconds=ahead_s)).to_msg()
    return message


def joints(*names: str) -> JointState:
    return JointState(name=list(names), position=[0.0] * len(names))


def picture(encoding: str = "rgb8", side: int = 8) -> Image:
    return Image(encoding=encoding, height=side, width=side, step=3 * side, data=bytes(3 * side * side))


def add_broken_topics(robot: RosHarness, other: RosHarness) -> None:
    topics = Publishers(robot)
    topics.add("camera/front", Image, picture)
    topics.add("camera/depth", Image, lambda: picture("16UC1"))
    topics.add("joint_states", JointState, lambda: joints("j1", "j2", "j3", "elbow"))
    topics.add("reliable", Float64, Float64, BEST_EFFORT)
    topics.add("durable", Float64, Float64)
    topics.add("typed", Float64, Float64)
    topics.add("slow", Float64, Float64, every=20)
    topics.add("silent", Float64, None)
    topics.add("twice", Float64, Float64)
    Publishers(other).add("twice", Float64, Float64)
    topics.add("future", TwistStamped, lambda: stamped(robot, 10.0))
    topics.add("old", TwistStamped, lambda: stamped(robot, -1.0))
    topics.add("unstamped", TwistStamped, TwistStamped)
    topics.add("ignored_stamps", TwistStamped, lambda: stamped(robot, -100.0))
    topics.add("motion_enabled", Bool, Bool)
    topics.listen("shared", Float64MultiArray)
    topics.listen("misread", Float32)
    topics.listen("demanding", Float64MultiArray, qos.LATCHED)
    Publishers(other).add("shared", Float64MultiArray, None)


def broken_robot(stack: ExitStack, domain: int, folder: Path) -> None:
    """A robot on which everything is wrong at once."""
    contract = folder / "broken.yaml"
    contract.write_text(BROKEN)
    robot = stack.enter_context(RosHarness(domain, "robot"))
    add_broken_topics(robot, stack.enter_context(RosHarness(domain, "other")))
    recorder = stack.enter_context(RosHarness(domain, "recorder"))
    Publishers(recorder).listen("unheard", Float64MultiArray)  # it hears every command, and moves nothing
    parameters = {"contract": str(contract), "store_dir": str(folder / "none"), "worker_python": "/nowhere/python"}
    policy = StandInPolicy(domain, parameters=parameters, subscriptions=[(Float64, "slow")])
    stack.enter_context(policy)
    policy.status.state = PolicyStatus.STATE_HOLDING
    policy.status.hold_reason, policy.status.hold_latched = "LIMIT", True
    policy.status.missed_ticks = 100
    policy.status.error_code, policy.status.message = "LEASE_EXPIRED", "the manager is silent"


@dataclass(frozen=True)
class Verdicts:
    """What doctors said of graphs in which a node is missing: they wait until it is sure to be, and do so side by side."""

    broken: Verdict  # of a robot on which everything is wrong
    unclear: Verdict  # of two policies, each in a namespace of its own
    left: Verdict  # of the same, told which one
    absent: Verdict  # of nothing, with a broken contract
    early: Verdict  # of nothing, told that it is before the start


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """Five doctors at the same time, in three domains."""
    folder = tmp_path_factory.mktemp("verdicts")
    float_away = folder / "float_away.yaml"
    float_away.write_text(ARM.read_text().replace("hold: last_command", "hold: float_away", 1))
    with ExitStack() as stack:
        robot, arms, nothing = (stack.enter_context(claim_domain()) for _ in range(3))
        broken_robot(stack, robot, folder)
        for namespace in ("/left", "/right"):
            stack.enter_context(StandInPolicy(arms, namespace, parameters={}, lifecycle="inactive"))
        pool = stack.enter_context(ThreadPoolExecutor(len(fields(Verdicts))))
        before_start = ["-p", f"contract:={ARM}", "-p", "before_start:=true"]
        runs = [
            pool.submit(run_doctor, robot),
            pool.submit(run_doctor, arms, seconds=0.5),
            pool.submit(run_doctor, arms, "--namespace", "/left", seconds=0.5),
            pool.submit(run_doctor, nothing, "--contract", str(float_away), seconds=0.5),
            pool.submit(run_doctor, nothing, ros=before_start, seconds=0.5),
        ]
        return Verdicts(*(run.result() for run in runs))


EXPECTED = [
    ("observation.images.gone /camera/gone", "TOPIC_MISSING", "published with this type: /camera/depth, /camera/front"),
    ("observation.images.depth /camera/depth", "MESSAGE_UNUSABLE", "ros2 topic echo --once /camera/depth"),
    ("observation.state /joint_states", "MESSAGE_UNUSABLE", "`select`"),
    ("observation.reliable /reliable", "TOPIC_QOS", "`qos: {reliability: best_effort}` for reliable"),
    ("observation.durable /durable", "TOPIC_QOS", "`qos: {durability: volatile}` for durable"),
    ("observation.type /typed", "TOPIC_TYPE", "`type: std_msgs/msg/Float64`"),
    ("observation.slow /slow", "TOPIC_SLOW", "raise the rate of /robot above 5 Hz"),
    ("observation.silent /silent", "TOPIC_SILENT", "look why /robot does not publish"),
    ("observation.twice /twice", "TOPIC_PUBLISHERS", "stop all but one of /other, /robot"),
    ("observation.future /future", "STAMP_FUTURE", "chrony"),
    ("observation.old /old", "STAMP_OLD", "chrony"),
    ("observation.unstamped /unstamped", "STAMP_ZERO", "let /robot fill header.stamp"),
    ("observation.ignored_stamps /ignored_stamps", "STAMP_OFF", "synchronise"),
    ("motion_enabled /motion_enabled", "MOTION_DISABLED", "/robot gets its flag"),
    ("command /shared", "COMMAND_FOREIGN_PUBLISHER", "stop /other"),
    ("command /shared", "COMMAND_NO_PUBLISHER", "policy_node's log"),
    ("command /unheard", "COMMAND_UNHEARD", "start the robot's controller"),
    ("command /misread", "TOPIC_TYPE", "let /robot use std_msgs/msg/Float64MultiArray"),
    ("command /demanding", "TOPIC_QOS", "`qos: {durability: transient_local}` for demanding"),
    ("node /policy_node", "POLICY_HOLDING", "ros2 service call /policy_node/resume"),
    ("node /policy_node", "POLICY_LAST_ERROR", "docs/errors.md"),
    ("node /policy_node", "TICKS_MISSED", "SCHED_FIFO"),
    ("node /ota_manager", "MANAGER_ABSENT", "robot.launch.py"),
    ("workers' interpreter", "WORKER_PYTHON_MISSING", "worker_python"),
    ("/none", "STORE_MISSING", "start ota_manager once"),
]


@pytest.mark.parametrize(("what", "code", "remedy"), EXPECTED, ids=[f"{c}:{w.split()[-1]}" for w, c, _ in EXPECTED])
def test_each_broken_thing_gets_its_line_and_its_remedy(verdicts: Verdicts, what: str, code: str, remedy: str) -> None:
    findings = verdicts.broken.findings
    found = [f for f in findings if f["what"].endswith(what) and f["code"] == code]
    assert len(found) == 1, [f for f in findings if f["what"].endswith(what)]
    assert remedy in found[0]["remedy"]


def test_a_broken_robot_makes_the_exit_status_one(verdicts: Verdicts) -> None:
    assert verdicts.broken.exit_status == 1


def test_only_a_topic_that_the_running_policy_does_not_hear_is_reported(verdicts: Verdicts) -> None:
    deaf = {f["what"] for f in verdicts.broken.findings if f["code"] == "POLICY_NOT_SUBSCRIBED"}
    assert "observation.silent /silent" in deaf and "observation.slow /slow" not in deaf


# -- a sound robot ----------------------------------------------------------------------------------------------------------


def make_store(folder: Path) -> Path:
    channels = [Channel(name, "rad", "absolute") for name in ("j1", "j2", "j3")]
    make_bundle(folder / "factory", channels=channels)
    store = Store(folder / "store", Filesystem())
    store.open()
    store.import_bundle(folder / "factory", lambda path: verify_bundle(path).manifest, commit=True)
    store.close()
    return folder / "store"


def patient_contract(folder: Path) -> Path:
    """The arm's contract with tolerances that a busy machine of the tests keeps."""
    contract = folder / "patient.contract.yaml"
    contract.write_text(re.sub(r"tolerance_ms: \d+", "tolerance_ms: 5000", ARM.read_text()))
    return contract


def sound_robot(stack: ExitStack, domain: int, store: Path, namespace: str, contract: Path = ARM) -> StandInPolicy:
    robot = stack.enter_context(RosHarness(domain, "robot", namespace))
    topics = Publishers(robot)
    topics.add("camera/image_raw", Image, lambda: picture(side=64))
    topics.add("joint_states", JointState, lambda: joints("gripper", "j3", "j2", "j1"))
    topics.listen("forward_position_controller/commands", Float64MultiArray)
    policy = StandInPolicy(
        domain,
        namespace,
        parameters={"contract": str(contract), "store_dir": str(store)},
        command_topic="forward_position_controller/commands",
        subscriptions=[(Image, "camera/image_raw"), (JointState, "joint_states")],
    )
    return stack.enter_context(policy)


def test_a_sound_robot_passes_without_an_argument_and_in_a_namespace(ros_domain: int, tmp_path: Path) -> None:
    store = make_store(tmp_path)
    manager = {"store_dir": str(store), "min_free_bytes": 0, "allowed_sources": ["http://127.0.0.1:9/"]}
    with ExitStack() as stack:
        sound_robot(stack, ros_domain, store, "/arm_1", patient_contract(tmp_path))
        stack.enter_context(
            NodeProcess(
                "vla_ota_manager.ros.manager_node", ros_domain, tmp_path, parameters=manager, namespace="/arm_1"
            )
        )
        probe = stack.enter_context(RosHarness(ros_domain, "probe", "/arm_1"))
        probe.subscribe(ModelStatus, "ota_manager/status", qos.LATCHED_EACH).wait()
        verdict = run_doctor(ros_domain, seconds=2.5)
        assert verdict.failed == set() and verdict.exit_status == 0, verdict.findings
        for part in (
            "/arm_1/camera/image_raw",
            "/arm_1/joint_states",
            "/forward_position_controller/commands",
            "/ota_manager",
        ):
            assert any(f["what"].endswith(part) and f["level"] == "ok" for f in verdict.findings), part
        assert verdict.codes("settings of /arm_1/ota_manager") == []

        others = ["-p", "contract:=/nowhere.yaml", "-p", "seconds:=1", "-r", "__ns:=/arm_1"]
        verdict = run_doctor(ros_domain, "--seconds=1", ros=others)
        assert "/nowhere.yaml" in verdict.one("CONTRACT_BROKEN")["remedy"] and verdict.exit_status == 1


def test_two_policy_nodes_of_one_name_and_stores_that_differ_fail(ros_domain: int, tmp_path: Path) -> None:
    store = make_store(tmp_path)
    manager = {"store_dir": str(tmp_path / "other"), "min_free_bytes": 0, "robot_type": "forklift"}
    with ExitStack() as stack:
        sound_robot(stack, ros_domain, store, "")
        twin = {"contract": str(ARM), "store_dir": str(store)}  # either of the two may be the one that answers
        stack.enter_context(StandInPolicy(ros_domain, parameters=twin))
        stack.enter_context(NodeProcess("vla_ota_manager.ros.manager_node", ros_domain, tmp_path, parameters=manager))
        probe = stack.enter_context(RosHarness(ros_domain, "probe"))
        probe.subscribe(ModelStatus, "ota_manager/status", qos.LATCHED_EACH).wait()
        verdict = run_doctor(ros_domain)
    assert "NODE_TWICE" in verdict.codes("node /policy_node") and verdict.exit_status == 1
    assert "robot_type of ota_manager to 'sim_arm'" in verdict.one("ROBOT_TYPE_DIFFERS")["remedy"]
    assert verdict.one("STORE_DIFFERS")
    assert "allowed_sources" in verdict.one("SOURCES_EMPTY")["remedy"]


def test_several_policies_elsewhere_ask_for_the_namespace(verdicts: Verdicts) -> None:
    assert "/left, /right" in verdicts.unclear.one("NAMESPACE_UNCLEAR")["remedy"]
    assert "ros2 lifecycle set /left/policy_node activate" in verdicts.left.one("POLICY_INACTIVE")["remedy"]
    assert "NAMESPACE_UNCLEAR" not in verdicts.left.failed


# -- nothing runs -----------------------------------------------------------------------------------------------------------


def test_without_nodes_the_doctor_says_so_unless_it_is_before_the_start(verdicts: Verdicts) -> None:
    absent, early = verdicts.absent, verdicts.early
    assert absent.failed == {"CONTRACT_BROKEN", "POLICY_ABSENT"} and absent.exit_status == 1
    told = absent.one("CONTRACT_BROKEN")["text"]
    assert "hold" in told and "float_away.yaml" in told
    assert "POLICY_ABSENT" not in early.failed and "TOPIC_MISSING" in early.failed


@pytest.mark.parametrize("ros", [["-p", "seconds:=0.0"], ["-p", "contract:=7"]])
def test_wrong_usage_ends_with_two_and_one_line(ros_domain: int, ros: list[str]) -> None:
    command = ["--before-start"]
    verdict = (
        run_doctor(ros_domain, *command, ros=ros)
        if ros != ["-p", "seconds:=0.0"]
        else run_doctor(ros_domain, "--seconds=0")
    )
    assert verdict.exit_status == 2 and "Traceback" not in verdict.error and "error" in verdict.error
