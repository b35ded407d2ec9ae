"""The policy port over ROS: bounded waits whatever the policy node does, and nothing of it left behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.bundles import make_bundle
from support.ros import RosHarness
from support.ros_policy import StandInPolicyNode
from support.waits import wait_for
from vla_ota.msg import PolicyStatus

from vla_ota_manager.port import SwapRequest
from vla_ota_manager.ros.policy_port import RosPolicyPort
from vla_ros import qos
from vla_ros.diagnostics import Diagnostics
from vla_ros.fault import Fault
from vla_sim.dds import claim_domain

SILENT_S = 60.0
MODULE = "vla_ota_manager.ros.policy_port"


def never() -> bool:
    return False


def ignore(state: str, progress: float) -> None:
    pass


@pytest.fixture(scope="module")
def node() -> Iterator[RosHarness]:
    with claim_domain() as domain, RosHarness(domain, "ota_manager", threads=6) as node:
        node.domain = domain  # type: ignore[attr-defined]
        yield node


@pytest.fixture(scope="module")
def stand_in(node: RosHarness) -> Iterator[StandInPolicyNode]:
    with StandInPolicyNode(node.domain) as policy:  # type: ignore[attr-defined]
        yield policy


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine of the tests; who tests what these are for sets them again."""
    monkeypatch.setattr(f"{MODULE}.DISCOVERY_S", 40.0)
    monkeypatch.setattr(f"{MODULE}.REPLY_S", 40.0)


@pytest.fixture
def policy(stand_in: StandInPolicyNode) -> StandInPolicyNode:
    """A policy node that has just been started; it was in the graph before, because to be discovered takes seconds."""
    stand_in.restart()
    return stand_in


def make_port(node: RosHarness, policy_node: str = "policy_node", silent_s: float = SILENT_S) -> RosPolicyPort:
    return node.on_executor(
        lambda: RosPolicyPort(node.node, policy_node, silent_s, lambda: None, Diagnostics(node.node, lambda: "test"))
    )


def connected(port: RosPolicyPort, node: RosHarness, policy: StandInPolicyNode) -> RosPolicyPort:
    """The port, when it and the policy node know each other, and it has heard what the one of this test says."""
    wait_for(lambda: port._prepare.server_is_ready() and port._swap.service_is_ready(), "the policy node's servers")
    node.known_to("policy_node")
    wait_for(lambda: (status := port.status()) is not None and status.boot_id == policy.boot_id, "a status")
    return port


@pytest.fixture
def port(node: RosHarness, policy: StandInPolicyNode) -> RosPolicyPort:
    return connected(make_port(node), node, policy)


@pytest.fixture
def say(node: RosHarness) -> Iterator[Callable[[str, PolicyStatus], None]]:
    """Publish a status on a topic, instead of a policy node; what it has latched goes with the test."""
    publishers: dict[str, Any] = {}

    def publish(topic: str, status: PolicyStatus) -> None:
        if topic not in publishers:
            publishers[topic] = node.advertise(PolicyStatus, topic, qos.LATCHED)
        publishers[topic].publish(status)

    yield publish
    for publisher in publishers.values():
        node.withdraw(publisher)


def fall_silent(port: RosPolicyPort, policy: StandInPolicyNode) -> None:
    """The policy node publishes no status any more, and the port has heard the last one."""
    policy.fall_silent("the last words")
    wait_for(lambda: (s := port.status()) is not None and s.episode_id == "the last words", "the last status")


def test_without_a_policy_node_calls_return_policy_absent_and_the_status_is_unknown(
    node: RosHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.DISCOVERY_S", 0.2)
    port = make_port(node, "nobody")
    assert port.status() is None
    prepared = port.prepare(Path("/nowhere"), "0" * 64, ignore, never, 600.0, skip_shadow=False)
    swapped = port.swap(SwapRequest("0" * 64), never)
    assert (prepared.error_code, prepared.fault) == (swapped.error_code, swapped.fault) == ("POLICY_ABSENT", Fault.BUSY)


def test_prepare_then_swap_and_the_snapshot_says_what_acts_and_why(
    port: RosPolicyPort, policy: StandInPolicyNode, tmp_path: Path
) -> None:
    digest = make_bundle(tmp_path / "b").digest
    heard: list[str] = []
    result = port.prepare(
        tmp_path / "b", digest, lambda state, progress: heard.append(state), never, 10.0, skip_shadow=False
    )
    assert result.success and "LOADING" in heard
    swapped = port.swap(SwapRequest(digest, trial=True, lease_s=7.0), never)
    assert (swapped.success, swapped.active_digest, swapped.generation) == (True, digest, 1)
    assert swapped.stamp_s > 0 and swapped.swap_latency_s > 0 and not swapped.warm
    assert (policy.swaps[-1].trial, policy.swaps[-1].trial_lease_s) == (True, 7.0)
    wait_for(lambda: (s := port.status()) is not None and s.last_swap_cause == "UPDATE" and s.on_trial, "the cause")
    again = port.swap(SwapRequest(digest), never)
    assert again.success and again.generation == 1 and again.stamp_s == 0.0


def test_refusals_keep_the_policy_nodes_code_and_words(
    port: RosPolicyPort, policy: StandInPolicyNode, tmp_path: Path
) -> None:
    result = port.prepare(tmp_path / "missing", "", ignore, never, 10.0, skip_shadow=False)
    assert (result.success, result.error_code, result.fault) == (False, "FILE_MISSING", Fault.BUNDLE)
    assert "missing" in result.message
    swapped = port.swap(SwapRequest("0" * 64), never)
    assert (swapped.success, swapped.error_code, swapped.active_digest) == (False, "NOT_PREPARED", "")
    assert swapped.fault is Fault.PERSON


def test_a_preparation_that_is_cancelled_or_takes_too_long_is_cancelled_there_too(
    port: RosPolicyPort, policy: StandInPolicyNode, tmp_path: Path
) -> None:
    digest = make_bundle(tmp_path / "b").digest
    policy.prepare_s = 600.0
    begun = lambda: bool(policy.prepared_paths)  # noqa: E731
    assert port.prepare(tmp_path / "b", digest, ignore, begun, 600.0, skip_shadow=False).error_code == "CANCELLED"
    wait_for(lambda: policy.cancelled == 1, "the first cancellation")
    assert port.prepare(tmp_path / "b", digest, ignore, never, 0.3, skip_shadow=False).error_code == "PREPARE_TIMEOUT"
    wait_for(lambda: policy.cancelled == 2, "the second cancellation")


def test_a_policy_node_that_restarts_or_falls_silent_during_a_preparation_is_absent(
    port: RosPolicyPort, policy: StandInPolicyNode, node: RosHarness, tmp_path: Path
) -> None:
    digest = make_bundle(tmp_path / "b").digest
    policy.prepare_s = 600.0

    def boot(state: str, progress: float) -> None:
        policy.boot_id = "another boot"

    assert port.prepare(tmp_path / "b", digest, boot, never, 600.0, skip_shadow=False).error_code == "POLICY_ABSENT"
    impatient = connected(make_port(node, silent_s=1.0), node, policy)
    silence = lambda state, progress: policy.fall_silent("")  # noqa: E731
    result = impatient.prepare(tmp_path / "b", digest, silence, never, 600.0, skip_shadow=False)
    assert result.error_code == "POLICY_ABSENT"


def test_a_preparation_that_is_not_accepted_soon_was_lost_on_the_way_and_is_cancelled_if_it_was_not(
    port: RosPolicyPort, policy: StandInPolicyNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = make_bundle(tmp_path / "b").digest
    policy.prepare_s = 600.0
    policy.accepting.clear()
    with monkeypatch.context() as soon:
        soon.setattr(f"{MODULE}.REPLY_S", 0.2)
        result = port.prepare(tmp_path / "b", digest, ignore, never, 600.0, skip_shadow=False)
        assert result.error_code == "POLICY_ABSENT"
    policy.accepting.set()
    wait_for(lambda: policy.cancelled == 1, "the cancellation of what was accepted late")
    policy.prepare_s = 0.0
    assert port.prepare(tmp_path / "b", digest, ignore, never, 600.0, skip_shadow=False).success


def test_a_policy_node_that_is_found_at_the_last_moment_is_asked_all_the_same(
    port: RosPolicyPort, policy: StandInPolicyNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = make_bundle(tmp_path / "b").digest
    monkeypatch.setattr(f"{MODULE}.DISCOVERY_S", 0.0)
    result = port.prepare(tmp_path / "b", digest, ignore, never, 600.0, skip_shadow=False)
    assert result.success, result
    assert port.swap(SwapRequest(digest), never).success


def test_what_went_wrong_is_kept_with_its_time_though_later_statuses_say_no_more_of_it(
    port: RosPolicyPort, policy: StandInPolicyNode, say: Callable[[str, PolicyStatus], None]
) -> None:
    fall_silent(port, policy)

    def fail(code: str, text: str, generation: int) -> None:
        status = PolicyStatus(state=PolicyStatus.STATE_HOLDING, boot_id=policy.boot_id, generation=generation)
        status.error_code, status.message = code, text
        say("policy_node/status", status)
        wait_for(lambda: (s := port.status()) is not None and s.generation == generation, f"status {generation}")

    def heard() -> tuple[str, str, float]:
        snapshot = port.status()
        assert snapshot is not None
        return snapshot.error_code, snapshot.error_text, snapshot.error_heard_s

    fail("POLICY_FAILED", 'Traceback (most recent call last):\n  File "p.py"\nValueError: no\x1b\n', 101)
    assert heard()[:2] == ("POLICY_FAILED", "ValueError: no\N{REPLACEMENT CHARACTER}")
    first = heard()
    fail("POLICY_FAILED", 'Traceback (most recent call last):\n  File "p.py"\nValueError: no\x1b\n', 102)
    fail("", "", 103)
    assert heard() == first  # repeated, then taken back by a swap
    fail("WORKER_DIED", "1.1.0: killed", 104)
    fail("", "", 105)
    fail("WORKER_DIED", "1.1.0: killed", 106)
    assert heard()[:2] == ("WORKER_DIED", "1.1.0: killed") and heard()[2] > first[2]


def test_a_policy_node_that_is_not_configured_can_be_asked_nothing_and_its_words_say_so(
    port: RosPolicyPort,
    policy: StandInPolicyNode,
    say: Callable[[str, PolicyStatus], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fall_silent(port, policy)
    clock = SimpleNamespace(now_s=1e9)  # stands still but for what this test does
    monkeypatch.setattr(f"{MODULE}.time", SimpleNamespace(monotonic=lambda: clock.now_s))
    before = port.status()
    assert before is not None and not before.unconfigured and before.age_s > SILENT_S
    refusal = {"error_code": "CONTRACT_SYNTAX", "message": "CONTRACT_SYNTAX: my_arm.yaml:\nline 7"}
    say("policy_node/status", PolicyStatus(state=PolicyStatus.STATE_UNCONFIGURED, **refusal))
    wait_for(lambda: (s := port.status()) is not None and s.unconfigured, "its words")
    snapshot = port.status()
    assert snapshot is not None and snapshot.boot_id == policy.boot_id
    assert snapshot.unconfigured == "is not configured: CONTRACT_SYNTAX: my_arm.yaml: line 7"
    assert snapshot.age_s > SILENT_S, "they are no status of a node that is configured"
    reply = port.swap(SwapRequest("0" * 64), never)
    assert (reply.error_code, reply.message) == ("POLICY_ABSENT", f"policy_node {snapshot.unconfigured}")
    clock.now_s += SILENT_S + 1.0
    silent = port.status()
    assert silent is not None and not silent.unconfigured and silent.age_s > SILENT_S
    policy.silent = False
    policy.publish_status()
    wait_for(lambda: (s := port.status()) is not None and s.age_s < SILENT_S, "the status of a node that is configured")


def test_a_policy_node_that_was_never_configured_is_known_and_runs_nothing(
    node: RosHarness, policy: StandInPolicyNode, say: Callable[[str, PolicyStatus], None]
) -> None:
    port = make_port(node, "never")
    say("never/status", PolicyStatus(state=PolicyStatus.STATE_UNCONFIGURED))
    wait_for(lambda: port.status() is not None, "the status")
    snapshot = port.status()
    assert snapshot is not None and snapshot.unconfigured == "is not configured"
    assert (snapshot.age_s, snapshot.active_digest, snapshot.generation) == (math.inf, "", 0)


def test_a_status_says_at_once_what_acts_and_why_as_soon_as_its_report_is_there(
    port: RosPolicyPort, policy: StandInPolicyNode
) -> None:
    """A report comes a second after its swap; until then the cause of the swap before must not be taken for its cause."""
    policy.active, policy.generation = ("a" * 64, "1.0.0"), 1
    policy.publish_report("UPDATE")
    policy.publish_status()
    wait_for(lambda: (s := port.status()) is not None and s.last_swap_cause == "UPDATE", "the first version")
    policy.active, policy.generation = ("b" * 64, "2.0.0"), 2
    policy.publish_status()
    wait_for(lambda: (s := port.status()) is not None and s.active_digest == "b" * 64, "the second version")
    snapshot = port.status()
    assert snapshot is not None and snapshot.last_swap_cause == ""
    policy.publish_report("LEASE_EXPIRED")
    wait_for(lambda: (s := port.status()) is not None and s.last_swap_cause == "LEASE_EXPIRED", "the cause")
