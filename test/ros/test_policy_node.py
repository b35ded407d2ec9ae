# SPDX-License-Identifier: Apache-2.0
"""The policy node on real ROS: names, replies and messages; what it does is tested on the engine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import GetState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import Trigger
from support.engine_rig import PATIENT, contract_text
from support.policy_rig import PolicyRig
from support.robot_rig import LONG_HORIZON
from support.ros import RosHarness
from support.scripted import scripted_bundle
from support.waits import wait_for
from vla_ota.action import PrepareModel, RunPolicy
from vla_ota.msg import AnomalyScore, ModelStatus, PolicyStatus
from vla_ota.srv import EndEpisode, StartEpisode

from vla_ros import qos
from vla_ros.fault import Fault
from vla_sim.dds import claim_domain
from vla_sim.witness import Witness


@pytest.fixture
def rig(ros_domain: int, tmp_path: Path) -> Iterator[PolicyRig]:
    """A robot that runs 1.0.0 from a factory bundle."""
    scripted_bundle(tmp_path / "a", "1.0.0", horizon=LONG_HORIZON)
    with PolicyRig(ros_domain, tmp_path, model_path=str(tmp_path / "a")) as running:
        running.wait_running("1.0.0")
        yield running


TASK = """
  task:
    channel: {topic: task_prompt, type: std_msgs/msg/String}
    align: {strategy: hold, timeline: receive}"""


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory, shared_domain: int) -> Iterator[PolicyRig]:
    """One robot that runs 1.0.0, for tests that change nothing; in the end its node ends cleanly."""
    folder = tmp_path_factory.mktemp("shared")
    scripted_bundle(folder / "a", "1.0.0", horizon=LONG_HORIZON)
    (folder / "contract.yaml").write_text(contract_text(**PATIENT).replace("observations:", "observations:" + TASK))
    with PolicyRig(shared_domain, folder, model_path=str(folder / "a")) as running:
        running.wait_running("1.0.0")
        yield running
        assert running.node.stop() == 0


@pytest.fixture
def lent_rig(shared_rig: PolicyRig) -> Iterator[PolicyRig]:
    """The same robot for a test that changes it for a while: it runs 1.0.0 before, and must again afterwards."""
    shared_rig.wait_running("1.0.0")
    shared_rig.forget()
    yield shared_rig
    shared_rig.wait_running("1.0.0")


def test_a_swap_in_motion_is_answered_reported_and_undone_without_a_missed_tick(
    lent_rig: PolicyRig, witness: Witness
) -> None:
    rig, bundle, begun_s = lent_rig, lent_rig.folder / "swapped", time.monotonic()
    first = rig.status.wait()
    manifest = scripted_bundle(bundle, "1.1.0", offset=0.02, horizon=LONG_HORIZON)

    reply = rig.swap(bundle_path=str(bundle), digest=manifest.digest, expected_active_digest=first.active_digest)

    assert reply.success, reply.message
    assert (reply.active_version, reply.report.from_version, reply.report.to_version) == ("1.1.0", "1.0.0", "1.1.0")
    report = rig.reports.wait(lambda m: m.to_version == "1.1.0")
    assert report.missed_ticks == witness.share(report.missed_ticks, begun_s) and report.starved_ticks == 0
    assert not report.warm and report.load_s > 0 and report.golden_s > 0 and report.at == "CHUNK"
    status = rig.wait_running("1.1.0")
    assert (status.standby_version, status.generation) == ("1.0.0", reply.generation)

    back = rig.swap(digest=first.active_digest, cause="ROLLBACK", at="NOW")

    assert back.success and back.active_version == "1.0.0"
    report = rig.reports.wait(lambda m: m.cause == "ROLLBACK")
    assert report.warm and report.load_s == 0
    assert report.missed_ticks == witness.share(report.missed_ticks, begun_s) and report.starved_ticks == 0


@pytest.mark.parametrize(
    ("fields", "code", "fault"),
    [
        ({}, "EMPTY_REQUEST", Fault.PERSON),
        ({"digest": "0" * 64}, "NOT_PREPARED", Fault.PERSON),
        ({"bundle_path": "/etc"}, "BUNDLE_OUTSIDE_ROOTS", Fault.BUNDLE),
        ({"digest": "0" * 64, "timeout_s": float("nan")}, "DURATION_INVALID", Fault.PERSON),
        ({"digest": "0" * 64, "expected_active_digest": "1" * 64}, "EXPECTATION_FAILED", Fault.PERSON),
    ],
)
def test_a_swap_that_cannot_be_done_says_why_and_the_robot_keeps_its_policy(
    shared_rig: PolicyRig, fields: dict[str, object], code: str, fault: Fault
) -> None:
    reply = shared_rig.swap(**fields)
    assert (reply.success, reply.error_code, reply.fault, reply.active_version) == (False, code, fault, "1.0.0")
    assert reply.message
    assert shared_rig.wait_running("1.0.0").error_code in ("", code)


def test_prepare_model_gives_feedback_and_its_result_is_activated_by_digest(lent_rig: PolicyRig) -> None:
    rig, bundle = lent_rig, lent_rig.folder / "prepared"
    first = rig.status.wait()
    manifest = scripted_bundle(bundle, "1.1.0", load_sleep_s=2.0)  # feedback is repeated each second
    goal = rig.ros.send_goal(PrepareModel, "policy_node/prepare_model", PrepareModel.Goal(bundle_path=str(bundle)))
    result = goal.result()
    assert result.success, result.message
    assert (result.version, result.digest) == ("1.1.0", manifest.digest)
    goal.feedback.wait(lambda m: m.state == "READY", what="the last feedback, which may come after the result")
    states = [m.state for m in goal.feedback.messages]
    assert states[-1] == "READY" and {*states} & {"LOADING", "DIGEST", "GOLDEN", "WARM_UP"}
    assert rig.wait_status(lambda m: m.prepared_version == "1.1.0", "1.1.0 prepared").active_version == "1.0.0"
    assert rig.swap(digest=manifest.digest).success
    rig.wait_running("1.1.0")
    assert rig.swap(digest=first.active_digest).success


def test_a_cancelled_preparation_leaves_the_running_policy_alone(lent_rig: PolicyRig) -> None:
    rig, bundle = lent_rig, lent_rig.folder / "slow"
    starved = rig.status.wait().starved_ticks
    scripted_bundle(bundle, "1.1.0", load_sleep_s=30.0)
    request = PrepareModel.Goal(bundle_path=str(bundle))
    goal = rig.ros.send_goal(PrepareModel, "policy_node/prepare_model", request)
    goal.feedback.wait(lambda m: m.state == "LOADING")
    assert goal.cancel()
    assert goal.status() == GoalStatus.STATUS_CANCELED
    assert goal.result().error_code == "CANCELLED"
    assert rig.wait_running("1.0.0").starved_ticks == starved


def test_an_episode_is_opened_closed_and_published(shared_rig: PolicyRig) -> None:
    ros = shared_rig.ros
    request = StartEpisode.Request(episode_id="e1", instruction="reach the red block")
    opened = ros.call(StartEpisode, "policy_node/start_episode", request)
    assert (opened.success, opened.episode_id, opened.version) == (True, "e1", "1.0.0")
    again = ros.call(StartEpisode, "policy_node/start_episode")
    assert (again.success, again.error_code) == (False, "EPISODE_OPEN")
    assert shared_rig.wait_status(lambda m: m.episode_id == "e1", "episode e1").instruction == "reach the red block"
    shared_rig.scores.wait(lambda m: m.episode_id == "e1" and m.version == "1.0.0")
    closed = ros.call(EndEpisode, "policy_node/end_episode", EndEpisode.Request(success=True))
    assert closed.success and closed.outcome.success and closed.outcome.version == "1.0.0"
    assert shared_rig.outcomes.wait(lambda m: m.episode_id == "e1").known
    none = ros.call(EndEpisode, "policy_node/end_episode")
    assert (none.success, none.error_code) == (False, "NO_EPISODE")


def test_the_instruction_may_come_by_a_topic_and_an_episode_keeps_its_own(lent_rig: PolicyRig) -> None:
    ros = lent_rig.ros
    prompt = ros.advertise(String, "task_prompt")
    ros.known_to("policy_node")

    def say(text: str) -> None:
        prompt.publish(String(data=text))

    try:
        for text in ("fold the cloth", "x" * 2000, "wipe the table"):  # the long one is dropped
            say(text)
        lent_rig.wait_status(lambda m: m.instruction == "wipe the table", "the newest instruction")
        ros.call(StartEpisode, "policy_node/start_episode", StartEpisode.Request(episode_id="t1", instruction="stack"))
        say("put it back")
        during = lent_rig.wait_status(lambda m: m.episode_id == "t1", "episode t1")
        assert during.instruction == "stack"
        closed = ros.call(EndEpisode, "policy_node/end_episode", EndEpisode.Request(success=True))
        assert closed.outcome.instruction == "stack"
        lent_rig.wait_status(lambda m: m.instruction == "put it back", "the instruction after the episode")
    finally:
        say("")
        lent_rig.wait_status(lambda m: m.instruction == "", "no instruction")


def test_run_policy_ends_with_what_end_episode_said_or_with_cancel(shared_rig: PolicyRig) -> None:
    ros = shared_rig.ros
    goal = ros.send_goal(RunPolicy, "policy_node/run_policy", RunPolicy.Goal(instruction="task", episode_id="r1"))
    assert goal.feedback.wait(lambda m: m.elapsed_s > 0).version == "1.0.0"
    ros.call(EndEpisode, "policy_node/end_episode", EndEpisode.Request(episode_id="r1", success=True))
    assert goal.result().success and goal.result().outcome.episode_id == "r1"

    goal = ros.send_goal(RunPolicy, "policy_node/run_policy", RunPolicy.Goal(episode_id="r2"))
    goal.feedback.wait()
    assert goal.cancel()
    assert goal.status() == GoalStatus.STATUS_CANCELED
    assert shared_rig.outcomes.wait(lambda m: m.episode_id == "r2").intervention


def test_a_late_subscriber_gets_the_status_at_once(shared_rig: PolicyRig, shared_domain: int) -> None:
    with RosHarness(shared_domain, "late") as late:
        status = late.subscribe(PolicyStatus, "policy_node/status", qos.LATCHED_EACH).wait()
    assert status.active_version == "1.0.0" and status.boot_id == shared_rig.status.last.boot_id


def test_a_lifecycle_manager_can_stop_and_start_the_commands(ros_domain: int, tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    with PolicyRig(ros_domain, tmp_path, autostart=False, model_path=str(tmp_path / "a")) as rig:
        assert rig.status.wait().state == PolicyStatus.STATE_UNCONFIGURED
        assert rig.change_state(Transition.TRANSITION_CONFIGURE)
        rig.wait_status(lambda m: m.active_version == "1.0.0", "1.0.0 loaded")
        assert not rig.robot.commands, "commands before activation"
        assert rig.change_state(Transition.TRANSITION_ACTIVATE)
        rig.wait_running("1.0.0")
        wait_for(lambda: rig.robot.commands, "commands")
        assert rig.change_state(Transition.TRANSITION_DEACTIVATE)
        rig.wait_status(lambda m: m.state == PolicyStatus.STATE_INACTIVE, "inactive")
        for _ in range(2):  # commands that were sent before the status may be received after it
            rig.wait_status(lambda m: m.state == PolicyStatus.STATE_INACTIVE, "still inactive")
        sent = len(rig.robot.commands)
        for _ in range(2):
            rig.wait_status(lambda m: m.state == PolicyStatus.STATE_INACTIVE, "inactive all the time")
        assert len(rig.robot.commands) == sent, "commands while inactive"
        assert rig.change_state(Transition.TRANSITION_CLEANUP)
        assert rig.ros.call(GetState, "policy_node/get_state").current_state.label == "unconfigured"


def test_without_a_usable_contract_the_node_stays_unconfigured_and_says_why(ros_domain: int, tmp_path: Path) -> None:
    (tmp_path / "contract.yaml").write_text(contract_text(**PATIENT) + "hold_on: 3\n")
    with PolicyRig(ros_domain, tmp_path) as rig:
        status = rig.status.wait(lambda m: m.message)
        assert status.state == PolicyStatus.STATE_UNCONFIGURED
        assert status.error_code == "CONTRACT_KEY_UNKNOWN" and "hold_on" in status.message


def test_motion_disabled_stops_commands_and_they_do_not_come_back_before_resume(
    ros_domain: int, tmp_path: Path
) -> None:
    manifest = scripted_bundle(tmp_path / "a", "1.0.0")
    contract = {"auto_resume": False, "motion_required": True}
    with PolicyRig(ros_domain, tmp_path, contract=contract, model_path=str(tmp_path / "a")) as rig:
        rig.wait_status(
            lambda m: m.state == PolicyStatus.STATE_MOTION_DISABLED and m.active_version, "loaded, no motion"
        )
        assert not rig.robot.commands
        rig.robot.motion = True
        rig.wait_status(lambda m: m.holding and m.hold_latched, "a latched hold")
        assert rig.ros.call(Trigger, "policy_node/resume").success
        rig.wait_running("1.0.0")

        rig.robot.motion = False
        rig.wait_status(lambda m: m.state == PolicyStatus.STATE_MOTION_DISABLED, "motion disabled")
        for _ in range(2):  # commands that were sent before the status may be received after it
            rig.wait_status(lambda m: m.state == PolicyStatus.STATE_MOTION_DISABLED, "motion disabled")
        sent = len(rig.robot.commands)
        refused = rig.swap(digest=manifest.digest, at="NOW")
        assert (refused.success, refused.error_code) == (False, "MOTION_DISABLED")
        rig.robot.motion = True
        rig.wait_status(lambda m: m.holding and m.hold_latched, "a latched hold after motion came back")
        assert len(rig.robot.commands) == sent
        assert rig.ros.call(Trigger, "policy_node/resume").success
        rig.wait_running("1.0.0")


LEASE_S = 5.0  # a machine that stalls for less loses no trial


def test_a_trial_whose_manager_falls_silent_ends_where_it_began(rig: PolicyRig, tmp_path: Path) -> None:
    manifest = scripted_bundle(tmp_path / "b", "1.1.0")
    manager = rig.play_manager()
    assert rig.swap(bundle_path=str(tmp_path / "b"), trial=True, trial_lease_s=LEASE_S).success
    begun_s = time.monotonic()
    while time.monotonic() < begun_s + LEASE_S + 1.0:  # renewed for longer than the lease
        manager.publish(ModelStatus(state=ModelStatus.STATE_TRIAL, trial_digest=manifest.digest))
        assert rig.wait_status(lambda m: True, "a status").active_version == "1.1.0"
    report = rig.reports.wait(lambda m: m.cause == "LEASE_EXPIRED")
    assert (report.from_version, report.to_version, report.warm) == ("1.1.0", "1.0.0", True)
    assert rig.wait_running("1.0.0").error_code == "LEASE_EXPIRED"


def test_topics_can_be_remapped_and_robots_in_namespaces_do_not_meet(ros_domain: int, tmp_path: Path) -> None:
    for arm in ("left", "right"):
        (tmp_path / arm).mkdir()
        scripted_bundle(tmp_path / arm / "a", "1.0.0" if arm == "left" else "2.0.0")
    remaps = ("commands:=controller/commands",)
    left = PolicyRig(
        ros_domain, tmp_path / "left", namespace="/left", remaps=remaps, model_path=str(tmp_path / "left" / "a")
    )
    with (
        left,
        PolicyRig(
            ros_domain, tmp_path / "right", namespace="/right", model_path=str(tmp_path / "right" / "a")
        ) as right,
    ):
        remapped = left.ros.subscribe(Float64MultiArray, "controller/commands")
        left.wait_running("1.0.0")
        right.wait_running("2.0.0")
        remapped.wait()
        wait_for(lambda: right.robot.commands, "commands of the right arm")
        assert not left.robot.commands, "the left arm's commands were remapped"


def test_a_second_policy_node_is_kept_off_the_command_topic(rig: PolicyRig, ros_domain: int, tmp_path: Path) -> None:
    with PolicyRig(ros_domain, tmp_path, model_path=str(tmp_path / "a"), remaps=("__node:=second",)) as second:
        wait_for(lambda: second.node.log.count("COMMAND_TOPIC_") > 1, "the second node's refusals")
        rig.wait_running("1.0.0")
        assert rig.node.stop() == 0  # cleanly, because it was asked to
        second.status = second.ros.subscribe(PolicyStatus, "second/status", qos.LATCHED_EACH)
        second.wait_running("1.0.0")  # it had not given up


def test_a_node_that_was_killed_and_started_again_holds_until_resume_and_begins_where_the_robot_is(
    ros_domain: int, tmp_path: Path
) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    parameters = {"contract": {"auto_resume": False}, "model_path": str(tmp_path / "a")}
    with PolicyRig(ros_domain, tmp_path, **parameters) as rig:
        rig.wait_status(lambda m: m.active_version and m.hold_reason == "STARTUP" and m.hold_latched, "a latched hold")
        assert not rig.robot.commands
        rig.resume()
        rig.wait_running("1.0.0")
        rig.node.kill()
    # In another domain, where the dead node's publisher is not: the first command must not be lost to a late connection.
    with claim_domain() as elsewhere, PolicyRig(elsewhere, tmp_path, **parameters) as rig:
        rig.robot.position = (0.7, -0.4)  # pushed while nothing commanded it
        wait_for(lambda: rig.ros.node.count_publishers("commands") == 1, "the command publisher")
        for _ in range(5):
            held = rig.wait_status(lambda m: m.active_version and m.holding, "a hold after the respawn")
        assert (held.hold_reason, held.hold_latched) == ("STARTUP", True)
        assert not rig.robot.commands
        rig.resume()
        rig.wait_running("1.0.0")
        assert rig.robot.commands[0] == pytest.approx((0.7, -0.4), abs=4.0 / 50 + 1e-6)  # a tick at the velocity limit


def control_process(rig: PolicyRig) -> int:
    of = ["pgrep", "-f", "vla_policy_node.control", "-P", str(rig.node.process.pid)]
    return int(subprocess.check_output(of))


def test_a_node_whose_control_process_was_lost_ends_so_that_it_is_restarted(rig: PolicyRig) -> None:
    os.kill(control_process(rig), signal.SIGKILL)
    assert rig.node.wait() == 1
    assert "CONTROL_LOST" in rig.node.log and "Traceback" not in rig.node.log
    last = rig.status.wait(lambda m: m.state == PolicyStatus.STATE_ERROR, what="the last status")
    assert last.error_code == "CONTROL_LOST"


def test_a_control_process_that_hangs_cannot_keep_the_robot_from_being_deactivated(rig: PolicyRig) -> None:
    control = control_process(rig)
    os.kill(control, signal.SIGSTOP)
    assert not rig.change_state(Transition.TRANSITION_DEACTIVATE)
    with pytest.raises(ProcessLookupError):
        os.kill(control, 0)
    assert rig.ros.call(GetState, "policy_node/get_state").current_state.label == "unconfigured"
    assert rig.change_state(Transition.TRANSITION_CONFIGURE) and rig.change_state(Transition.TRANSITION_ACTIVATE)
    rig.wait_running("1.0.0")


def test_the_name_of_the_manager_whose_word_renews_a_trial_is_a_parameter(ros_domain: int, tmp_path: Path) -> None:
    for name, version in (("a", "1.0.0"), ("b", "1.1.0")):
        digest = scripted_bundle(tmp_path / name, version).digest
    with PolicyRig(ros_domain, tmp_path, ota_manager="left_manager", model_path=str(tmp_path / "a")) as rig:
        rig.wait_running("1.0.0")
        manager = rig.play_manager("left_manager")
        assert rig.swap(bundle_path=str(tmp_path / "b"), trial=True, trial_lease_s=60.0).success
        rig.wait_status(lambda m: m.on_trial, "the trial")
        manager.publish(ModelStatus(state=ModelStatus.STATE_COMMITTED, committed_digest=digest))
        rig.wait_status(lambda m: not m.on_trial and m.active_version == "1.1.0", "the commit heard")


def test_a_subscriber_that_no_message_would_ever_reach_is_told_of_on_diagnostics(shared_rig: PolicyRig) -> None:
    told = shared_rig.ros.subscribe(DiagnosticArray, "/diagnostics")
    first = told.wait(lambda m: any(s.name.startswith("policy_node: ") for s in m.status))
    assert {s.hardware_id for s in first.status} == {"sim_arm"}
    shared_rig.ros.subscribe(
        AnomalyScore, "anomaly_score", qos.LATCHED
    )  # wants what was published before: never matches

    def names_it(message: DiagnosticArray) -> bool:
        return any("anomaly_score (subscription)" in status.message for status in message.status)

    told.wait(names_it, what="the incompatible subscription")
