# SPDX-License-Identifier: Apache-2.0
"""How policy_node starts, stops, and lives with a ROS clock that does what it likes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from builtin_interfaces.msg import Time
from rosgraph_msgs.msg import Clock
from support.policy_rig import PolicyRig
from support.ros import wait_for
from support.scripted import scripted_bundle
from vla_ota.msg import PolicyStatus

from vla_ros import qos


def test_a_swap_while_ros_time_is_near_zero_is_answered_and_reported(ros_domain: int, tmp_path: Path) -> None:
    for name, version in (("a", "1.0.0"), ("b", "1.1.0")):
        scripted_bundle(tmp_path / name, version)
    with PolicyRig(ros_domain, tmp_path, use_sim_time=True, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running("1.0.0")  # nobody publishes /clock
        assert rig.reports.wait(lambda m: m.to_version == "1.0.0").header.stamp == Time()
        reply = rig.swap(bundle_path=str(tmp_path / "b"))
        assert reply.success and reply.report.header.stamp == Time()
        assert rig.reports.wait(lambda m: m.to_version == "1.1.0").generation == reply.generation
        rig.wait_running("1.1.0")
        assert "Traceback" not in rig.node.log and rig.node.stop() == 0


def test_a_clock_that_is_set_back_costs_no_report_and_no_policy(ros_domain: int, tmp_path: Path) -> None:
    for name, version in (("a", "1.0.0"), ("b", "1.1.0")):
        scripted_bundle(tmp_path / name, version)
    with PolicyRig(ros_domain, tmp_path, use_sim_time=True, model_path=str(tmp_path / "a")) as rig:
        rig.wait_running("1.0.0")
        clock = rig.ros.advertise(Clock, "/clock", qos.EVENTS)
        clock.publish(Clock(clock=Time(sec=1000)))
        rig.wait_status(lambda m: m.header.stamp.sec == 1000, "the clock")
        clock.publish(Clock())
        rig.wait_status(lambda m: m.header.stamp.sec == 0, "the clock set back")
        assert rig.swap(bundle_path=str(tmp_path / "b")).report.header.stamp == Time()
        rig.reports.wait(lambda m: m.to_version == "1.1.0")
        rig.wait_running("1.1.0")
        assert "Traceback" not in rig.node.log


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
