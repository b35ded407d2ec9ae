# SPDX-License-Identifier: Apache-2.0
"""The doctor judges no graph that it has not discovered yet: a lost packet of discovery is sent again only seconds later."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import rclpy
from rclpy.signals import SignalHandlerOptions
from support.doctor_robot import StandInPolicy
from support.ros import RosHarness
from support.waits import wait_for

from vla_doctor.examination import examine
from vla_doctor.ros import doctor as module
from vla_doctor.ros.doctor import Doctor

LOOKS = 15
"""At the graph, until the others are in it; the doctor takes ten a second."""


class LateDoctor(Doctor):
    """To it, the other nodes come into the graph only at the look ``appears_at`` at the graph."""

    appears_at, looks = 0, 0

    def get_node_names_and_namespaces(self) -> Any:
        self.looks += 1
        nodes = super().get_node_names_and_namespaces()
        return nodes if self.looks >= self.appears_at else [(name, where) for name, where in nodes if name == "doctor"]


@pytest.fixture
def doctor(ros_domain: int) -> Iterator[LateDoctor]:
    """A doctor that listens for half a second, on a graph with a policy node and somebody called ota_manager."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        with StandInPolicy(ros_domain, parameters={}), RosHarness(ros_domain, "ota_manager"):
            doctor = LateDoctor({"seconds": 0.5}, "")
            try:
                wait_for(lambda: {"/policy_node", "/ota_manager"} <= set(doctor.node_names()), "a graph that is there")
                doctor.looks = 0
                yield doctor
            finally:
                doctor.close()
    finally:
        rclpy.try_shutdown()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph without the nodes that should be there counts as settled at once."""
    monkeypatch.setattr(module, "_DISCOVERY_MIN_S", 0.0)
    monkeypatch.setattr(module, "_SETTLED_S", 0.0)


def test_it_waits_for_the_nodes_that_should_be_there_but_not_for_ever(
    doctor: LateDoctor, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DISCOVERY_MAX_S", 60.0)
    doctor.appears_at = LOOKS
    doctor.discover(("policy_node", "ota_manager"))
    assert doctor.looks >= LOOKS

    doctor.looks = 0
    doctor.discover(())
    assert doctor.looks < LOOKS, "nobody is missing"

    monkeypatch.setattr(module, "_DISCOVERY_MAX_S", 0.5)
    began_s = time.monotonic()
    doctor.discover(("policy_node", "nobody"))
    assert time.monotonic() - began_s >= 0.5


def test_what_comes_into_the_graph_while_it_listens_makes_it_look_again(
    doctor: LateDoctor, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DISCOVERY_MAX_S", 0.0)
    listening: list[int] = []

    def listen(seconds: float, *done: Any) -> bool:
        if seconds == doctor.settings.seconds:  # the nodes were looked for and not found
            listening.append(doctor.looks)
            doctor.appears_at = 0
        return Doctor.wait(doctor, seconds, *done)

    monkeypatch.setattr(doctor, "wait", listen)
    doctor.appears_at = 1_000_000
    codes = {finding.code for finding in examine(doctor, doctor.settings)}
    assert len(listening) == 2, "it listened once more"
    assert "POLICY_ABSENT" not in codes and "MANAGER_ABSENT" not in codes, codes
