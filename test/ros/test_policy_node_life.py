# SPDX-License-Identifier: Apache-2.0
"""How policy_node starts, stops, and lives with a ROS clock that does what it likes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from lifecycle_msgs.msg import Transition
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from support.engine_rig import PATIENT, contract_text
from support.policy_rig import PolicyRig
from support.scripted import scripted_bundle
from support.waits import wait_for
from vla_ota.action import RunPolicy
from vla_ota.msg import PolicyStatus

from vla_ros import qos


def test_swaps_are_answered_and_reported_while_ros_time_is_near_zero_and_after_it_was_set_back(
    ros_domain: int, tmp_path: Path
) -> None:
    for name, version in (("a", "1.0.0"), ("b", "1.1.0")):
        scripted_bundle(tmp_path / name, version)
    with PolicyRig(ros_domain, tmp_path, use_sim_time=True, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running("1.0.0")  # nobody publishes /clock
        assert rig.reports.wait(lambda m: m.to_version == "1.0.0").header.stamp == Time()
        reply = rig.swap(bundle_path=str(tmp_path / "b"))
        assert reply.success and reply.report.header.stamp == Time()
        assert rig.reports.wait(lambda m: m.to_version == "1.1.0").generation == reply.generation
        rig.wait_running("1.1.0")
        clock = rig.ros.advertise(Clock, "/clock", qos.EVENTS)

        def set_clock(now: Time) -> None:
            rig.status.clear()

            def told() -> bool:
                clock.publish(Clock(clock=now))  # best effort: one alone may be lost
                return any(m.header.stamp.sec == now.sec for m in rig.status.messages)

            wait_for(told, f"a status of {now.sec} s")

        set_clock(Time(sec=1000))
        set_clock(Time())
        assert rig.swap(bundle_path=str(tmp_path / "a")).report.header.stamp == Time()
        rig.reports.wait(lambda m: (m.from_version, m.to_version) == ("1.1.0", "1.0.0"))
        rig.wait_running("1.0.0")
        assert "Traceback" not in rig.node.log and rig.node.stop() == 0


def test_a_start_that_is_interrupted_at_any_point_is_one_start(ros_domain: int, tmp_path: Path) -> None:
    """Two threads of the executor once took the timer that starts the node, and the node died of it now and then."""
    scripted_bundle(tmp_path / "a", "1.0.0")
    rig = PolicyRig(ros_domain, tmp_path, module="support.preempted_policy_node", model_path=str(tmp_path / "a"))
    with rig:
        rig.wait_running("1.0.0")
        rig.wait_status(lambda m: m.state == PolicyStatus.STATE_RUNNING, "still running")
        assert rig.node.process.poll() is None
        assert "[ERROR]" not in rig.node.log and "Traceback" not in rig.node.log, rig.node.log
        assert rig.node.stop() == 0


def test_ctrl_c_while_the_control_process_is_being_imported_is_quiet(ros_domain: int, tmp_path: Path) -> None:
    """A terminal signals the whole group; SIGINT is sent to the child at the worst moment, and to its parent."""
    scripted_bundle(tmp_path / "a", "1.0.0")
    with PolicyRig(ros_domain, tmp_path, group=True, model_path=str(tmp_path / "a")) as rig:
        of = ["pgrep", "-f", "vla_policy_node.control", "-P", str(rig.node.process.pid)]
        wait_for(lambda: subprocess.run(of, check=False, capture_output=True).stdout, "the control process")
        os.killpg(rig.node.process.pid, signal.SIGINT)
        assert rig.node.wait() == 0
        assert "Traceback" not in rig.node.log and "[ERROR]" not in rig.node.log, rig.node.log


def test_ctrl_c_is_quiet_though_the_control_process_takes_longer_to_import_than_the_node_waits(
    ros_domain: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    begun = tmp_path / "begun"
    code = ["import pathlib, sys, time", "if 'vla_policy_node.control.process' in sys.orig_argv:"]
    code += [f"    pathlib.Path({str(begun)!r}).touch()", "    time.sleep(30)"]
    (tmp_path / "sitecustomize.py").write_text("\n".join(code))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    with PolicyRig(ros_domain, tmp_path, group=True, model_path=str(tmp_path / "a")) as rig:
        wait_for(begun.exists, "the control process")
        os.killpg(rig.node.process.pid, signal.SIGINT)
        assert rig.node.wait() == 0
        assert "Traceback" not in rig.node.log and "[ERROR]" not in rig.node.log, rig.node.log


def test_ctrl_c_while_the_contract_is_being_read_starts_nothing_afterwards(ros_domain: int, tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    os.mkfifo(tmp_path / "contract.yaml")  # reading it takes as long as we like
    with PolicyRig(ros_domain, tmp_path, group=True, model_path=str(tmp_path / "a")) as rig:
        with (tmp_path / "contract.yaml").open("w") as contract:
            rig.status.wait(what="the node, which reads")
            wait_for(lambda: rig.ros.node.count_publishers("policy_node/status"), "the node in the graph")
            os.killpg(rig.node.process.pid, signal.SIGINT)
            wait_for(lambda: not rig.ros.node.count_publishers("policy_node/status"), "the end of the node")
            contract.write(contract_text(**PATIENT))
        assert rig.node.wait() == 0
        assert "control process" not in rig.node.log and "[ERROR]" not in rig.node.log, rig.node.log


def test_an_event_that_a_cleanup_interrupts_does_not_keep_observations_from_the_next_start(
    ros_domain: int, tmp_path: Path
) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    topic = "type: sensor_msgs/msg/JointState"
    reliable = contract_text(**PATIENT).replace(topic, f"{topic}, qos: {{reliability: reliable}}")
    (tmp_path / "contract.yaml").write_text(reliable)
    rig = PolicyRig(ros_domain, tmp_path, module="support.interrupted_policy_node", model_path=str(tmp_path / "a"))
    with rig:  # its robot is best effort: the event is there at once
        wait_for(lambda: lines(rig, "activated"), "the start")
        rig.robot._joints = rig.ros.advertise(JointState, "joint_states", qos.EVENTS)
        assert rig.change_state(Transition.TRANSITION_DEACTIVATE) and rig.change_state(Transition.TRANSITION_CLEANUP)
        assert rig.change_state(Transition.TRANSITION_CONFIGURE) and rig.change_state(Transition.TRANSITION_ACTIVATE)
        rig.wait_running("1.0.0")


def test_the_control_process_belongs_to_the_node_s_enclave_and_is_hidden(ros_domain: int, tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    arguments = ("--enclave", "/cell/arm_1", "--log-level", "warn")
    with PolicyRig(ros_domain, tmp_path, arguments=arguments, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running("1.0.0")

        def enclaves() -> dict[str, str]:
            return {name: enclave for name, _, enclave in rig.ros.node.get_node_names_and_namespaces_with_enclaves()}

        ours = {"policy_node": "/cell/arm_1", "_policy_node_control": "/cell/arm_1"}
        # A node's name and its participant's enclave are announced apart.
        wait_for(lambda: ours.items() <= enclaves().items(), "both in the graph, in the node's enclave")


@pytest.fixture(scope="module")
def lent(tmp_path_factory: pytest.TempPathFactory, shared_domain: int) -> Iterator[PolicyRig]:
    """One robot that runs 1.0.0, for tests that leave it so."""
    folder = tmp_path_factory.mktemp("lent")
    scripted_bundle(folder / "a", "1.0.0")
    with PolicyRig(shared_domain, folder, model_path=str(folder / "a")) as rig:
        rig.wait_running("1.0.0")
        yield rig


def lines(rig: PolicyRig, words: str) -> list[str]:
    """Lines of the node's log with these words, without what ROS puts before them."""
    return [line.partition("]: ")[2] for line in rig.node.log.splitlines() if words in line]


def test_run_policy_ends_when_the_node_is_deactivated_and_does_not_begin_while_it_is(lent: PolicyRig) -> None:
    goal = lent.ros.send_goal(RunPolicy, "policy_node/run_policy", RunPolicy.Goal(episode_id="r1"))
    goal.feedback.wait()
    assert lent.change_state(Transition.TRANSITION_DEACTIVATE)
    assert (goal.status(), goal.result().error_code) == (GoalStatus.STATUS_ABORTED, "INACTIVE")
    assert not lent.outcomes.wait(lambda m: m.episode_id == "r1").known
    lent.wait_status(lambda m: m.state == PolicyStatus.STATE_INACTIVE and not m.episode_id, "no episode")

    late = lent.ros.send_goal(RunPolicy, "policy_node/run_policy", RunPolicy.Goal(episode_id="r2"))
    assert (late.status(), late.result().error_code) == (GoalStatus.STATUS_ABORTED, "INACTIVE")
    assert lent.change_state(Transition.TRANSITION_ACTIVATE)
    lent.wait_running("1.0.0")


def test_a_goal_that_cannot_be_names_the_field_of_the_goal(lent: PolicyRig) -> None:
    goal = lent.ros.send_goal(RunPolicy, "policy_node/run_policy", RunPolicy.Goal(max_duration_s=float("nan")))
    assert goal.result().error_code == "DURATION_INVALID" and goal.result().message.startswith("max_duration_s is nan")


def test_the_log_says_once_what_acts_what_stops_it_and_that_it_goes_on(lent: PolicyRig) -> None:
    assert lines(lent, "instead of nothing (UPDATE, loaded)")  # "acts", or "is active and will act"
    activations = lines(lent, "activated").count("activated")
    resumed = len(lines(lent, "1.0.0 acts: the hold STARTUP is over"))
    assert lent.change_state(Transition.TRANSITION_DEACTIVATE)
    assert lent.change_state(Transition.TRANSITION_ACTIVATE)
    lent.wait_running("1.0.0")
    wait_for(lambda: len(lines(lent, "1.0.0 acts: the hold STARTUP is over")) == resumed + 1, "the end of the hold")
    assert lines(lent, "activated").count("activated") == activations + 1

    lent.robot.motion = False
    lent.wait_status(lambda m: m.state == PolicyStatus.STATE_MOTION_DISABLED, "motion disabled")
    lent.robot.motion = True
    lent.wait_status(lambda m: m.holding and m.hold_latched, "a latched hold")
    lent.resume()
    lent.wait_running("1.0.0")
    wait_for(lambda: lines(lent, "the hold MOTION_REENABLED is over"), "the end of the hold")
    assert len(lines(lent, "motion stopped: motion_enabled is false or silent")) == 1
    assert len(lines(lent, "hold: MOTION_REENABLED (until resume): motion was disabled")) == 1


def test_a_swap_that_is_refused_again_and_again_is_logged_once_with_a_count(lent: PolicyRig) -> None:
    for _ in range(5):
        assert lent.swap(digest="0" * 64).error_code == "NOT_PREPARED"
    assert len(lines(lent, "swap refused: NOT_PREPARED")) == 1
    lent.swap(bundle_path="/etc")
    refused = lines(lent, "swap refused: ")
    assert len(refused) == 3 and " (4 more times in " in refused[1] and "BUNDLE_OUTSIDE_ROOTS" in refused[2]
