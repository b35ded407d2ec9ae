"""An offer on ``model_update`` ends as COMMITTED once it has proved itself, or as a coded refusal that changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Log
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from support.manager_rig import ManagerRig
from support.waits import wait_for
from vla_ota.msg import AnomalyScore, EpisodeOutcome, ModelStatus, PolicyStatus
from vla_ota.srv import ListModels

from vla_ros import qos
from vla_sim.dds import claim_domain


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerRig]:
    """A robot that runs 1.0.0, committed after a trial long enough to calibrate its scores."""
    parameters = {"first_install_chunks": 40, "min_trial_chunks": 40, "robot_type": "sim_arm"}
    with claim_domain() as domain, ManagerRig(domain, tmp_path_factory.mktemp("robot"), parameters=parameters) as rig:
        rig.start()
        rig.install("1.0.0")
        yield rig


def path_of(rig: ManagerRig, update_id: str) -> list[str]:
    return [event.to_state for event in rig.events.messages if event.update_id == update_id]


def test_an_offer_by_topic_is_fetched_swapped_in_tried_and_committed(rig: ManagerRig) -> None:
    digest = rig.publish("1.1.0")
    update_id = rig.offer("1.1.0", digest)
    rig.wait_event(update_id, "TRIAL")
    trial = rig.wait_state("TRIAL", lambda m: m.update_id == update_id)
    assert (trial.trial_version, trial.trial_digest, trial.committed_version) == ("1.1.0", digest, "1.0.0")
    assert rig.policy.active == (digest, "1.1.0")
    assert rig.policy.on_trial and rig.policy.swaps[-1].trial_lease_s > 0
    rig.prove(update_id)
    status = rig.wait_state("COMMITTED", lambda m: m.update_id == update_id and m.active_version == "1.1.0")
    assert (status.committed_version, status.committed_digest, status.previous_version) == ("1.1.0", digest, "1.0.0")
    assert status.rollback_ready == status.ROLLBACK_WARM
    sent = (
        rig.server.served["/pick_place/1.1.0/manifest.json"]
        + rig.server.served[f"/blobs/sha256/{rig.weights('1.1.0')}"]
    )
    assert status.bytes_downloaded == sent
    rig.wait_event(update_id, "COMMITTED")
    assert path_of(rig, update_id) == [
        "CHECKING", "FETCHING", "VERIFYING", "INSTALLED", "PREPARING", "SWAPPING", "TRIAL", "COMMITTED",
    ]  # fmt: skip
    wait_for(lambda: not rig.policy.on_trial, "the end of the lease")


def refuse(rig: ManagerRig, update_id: str, *codes: str) -> None:
    """The offer is rejected with one of the codes, in event and status; the robot keeps what it had."""
    event = rig.wait_event(update_id, "REJECTED")
    assert event.error_code in codes and event.message
    rig.status.wait(
        lambda m: m.update_id == update_id and m.error_code in codes and event.message in m.message,
        what="code and words in the status, under the update's own id",
    )


@pytest.fixture
def untouched(rig: ManagerRig) -> Iterator[None]:
    """Whatever the test does, the policy node is asked nothing and the disk holds what it held."""
    rig.status.clear()
    active, swaps, prepared = rig.policy.active, len(rig.policy.swaps), len(rig.policy.prepared_paths)
    models = {(m.version, m.digest) for m in rig.ros.call(ListModels, "ota_manager/list_models").models}
    yield
    reply = rig.ros.call(ListModels, "ota_manager/list_models")
    assert {(m.version, m.digest) for m in reply.models} == models
    assert (rig.policy.active, len(rig.policy.swaps), len(rig.policy.prepared_paths)) == (active, swaps, prepared)


def test_a_malformed_offer_is_rejected_with_its_field(rig: ManagerRig, untouched: None) -> None:
    refuse(rig, rig.offer("1.2.0", "0" * 64, name="../../etc"), "OFFER_INVALID")
    assert "name" in next(e for e in reversed(rig.events.messages) if e.error_code == "OFFER_INVALID").message


def test_an_expired_offer_is_rejected(rig: ManagerRig, untouched: None) -> None:
    digest = rig.publish("1.4.0")
    refuse(rig, rig.offer("1.4.0", digest, expires=Time(sec=int(time.time()) - 10)), "UPDATE_EXPIRED")


def test_a_token_and_a_password_in_an_offers_url_are_neither_published_nor_logged(
    rig: ManagerRig, untouched: None
) -> None:
    logged = rig.ros.subscribe(Log, "/rosout", qos.LATCHED_EACH)
    refuse(rig, rig.offer("1.3.0", "0" * 64, manifest_url=f"http://u:SECRET@{rig.server.base[7:]}/x"), "URL_INVALID")
    missing = rig.offer("1.3.0", "0" * 64, manifest_url=rig.server.url("gone?X-Amz-Signature=SECRET"))
    assert "gone?***" in rig.wait_event(missing, "FAILED").message
    logged.wait(lambda m: "gone?***" in m.msg, what="the log")
    assert rig.manager is not None
    said = [*rig.status.messages, *rig.events.messages, *logged.messages, rig.manager.log]
    said += rig.ros.call(ListModels, "ota_manager/list_models").history
    assert "SECRET" not in "\n".join(map(str, said))


def test_the_parameter_update_permitted_forbids_swaps_while_the_node_runs(rig: ManagerRig) -> None:
    def permit(value: bool) -> None:
        request = SetParameters.Request(parameters=[Parameter("update_permitted", value=value).to_parameter_msg()])
        assert rig.ros.call(SetParameters, "ota_manager/set_parameters", request).results[0].successful

    permit(False)
    swaps = len(rig.policy.swaps)
    update_id = rig.offer("1.9.0", rig.publish("1.9.0"))
    rig.status.wait(lambda m: m.update_id == update_id and "waits for update_permitted" in m.message)
    before = len(rig.status.messages)
    wait_for(lambda: len(rig.status.messages) > before + 3, "some more statuses")
    assert len(rig.policy.swaps) == swaps and rig.status.last.state_name == "INSTALLED"
    permit(True)
    rig.wait_event(update_id, "TRIAL")
    rig.prove(update_id)


def test_scores_that_are_no_numbers_and_odd_outcomes_do_not_upset_the_node(rig: ManagerRig) -> None:
    scores = rig.ros.advertise(AnomalyScore, "anomaly_score")
    outcomes = rig.ros.advertise(EpisodeOutcome, "episode_outcome")
    diagnostics = rig.ros.subscribe(DiagnosticArray, "/diagnostics")
    rig.ros.known_to("ota_manager")

    def told() -> DiagnosticArray | None:
        for value in (float("nan"), float("inf"), -float("inf"), 1e308):
            scores.publish(AnomalyScore(source="tce", score=value))
        scores.publish(AnomalyScore(source="", score=1.0))
        return next((m for m in diagnostics.messages if any("SCORE_INVALID" in s.message for s in m.status)), None)

    outcomes.publish(EpisodeOutcome(episode_id="\u0000\u2603" * 1000, duration_s=float("nan")))
    assert rig.ros.call(ListModels, "ota_manager/list_models").success
    finding = wait_for(told, "SCORE_INVALID")
    assert {s.name.rpartition(": ")[2] for s in finding.status} >= {
        "qos",
        "store",
        "update",
        "policy node",
        "trust",
        "scores",
    }
    assert rig.ros.call(ListModels, "ota_manager/list_models").success


def test_diagnostics_say_that_a_hash_alone_is_no_signature_and_do_not_warn_of_it_for_ever(rig: ManagerRig) -> None:
    diagnostics = rig.ros.subscribe(DiagnosticArray, "/diagnostics")
    array = diagnostics.wait(lambda m: any(s.name == "ota_manager: trust" for s in m.status))
    trust = next(s for s in array.status if s.name == "ota_manager: trust")
    assert trust.level == trust.OK and "not signed" in trust.message


def test_the_hardware_of_every_diagnostic_is_the_robot(rig: ManagerRig) -> None:
    diagnostics = rig.ros.subscribe(DiagnosticArray, "/diagnostics")
    array = diagnostics.wait(lambda m: any(s.name.startswith("ota_manager: ") for s in m.status))
    assert {s.hardware_id for s in array.status} == {"sim_arm"}


def test_a_policy_node_that_is_not_configured_is_not_said_to_be_silent_and_what_it_ran_not_to_act(
    rig: ManagerRig,
) -> None:
    statuses = rig.ros.advertise(PolicyStatus, "policy_node/status", qos.LATCHED, readers=0)
    diagnostics = rig.ros.subscribe(DiagnosticArray, "/diagnostics")
    assert rig.status.last.active_version
    rig.policy.fall_silent("")
    try:

        def told() -> bool:
            statuses.publish(PolicyStatus(error_code="CONTRACT_SYNTAX", message="line 7"))
            words = [s.message for m in diagnostics.messages for s in m.status if s.name == "ota_manager: policy node"]
            assert not any("POLICY_ABSENT" in text for text in words)
            return any(text == "'policy_node' is not configured: CONTRACT_SYNTAX: line 7" for text in words)

        wait_for(told, "its own words in the diagnostics")
        wait_for(lambda: rig.status.last.active_version == "", "a status in which nothing acts")
    finally:
        rig.ros.withdraw(statuses)
        rig.policy.silent = False
        rig.policy.publish_status()
    rig.status.wait(lambda m: m.active_version != "", what="what acts again")


def test_a_late_joiner_gets_the_latched_status(rig: ManagerRig) -> None:
    late = rig.ros.subscribe(ModelStatus, "ota_manager/status", qos.LATCHED_EACH)
    assert late.wait().committed_version == rig.status.last.committed_version
