"""What people ask of the manager: every service works with an empty request or says why not; install_model can be watched and
cancelled."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from action_msgs.msg import GoalStatus
from rcl_interfaces.msg import Log
from support.manager_rig import ManagerRig
from support.waits import wait_for
from vla_ota.action import InstallModel
from vla_ota.srv import CommitModel, ListModels, PinModel, Rollback, UnblockModel

from vla_ros import qos
from vla_sim.checkpoint_server import Behaviour
from vla_sim.dds import claim_domain


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagerRig]:
    """A robot that had 1.0.0 and runs 1.1.0, committed; 1.2.0 is in the registry."""
    with claim_domain() as domain, ManagerRig(domain, tmp_path_factory.mktemp("robot")) as rig:
        rig.start()
        rig.install("1.0.0")
        rig.install("1.1.0")
        rig.publish("1.2.0")
        yield rig


def goal(rig: ManagerRig, published: str, **fields: object) -> InstallModel.Goal:
    digest = rig.digests[published]
    return InstallModel.Goal(**{"manifest_url": rig.url(published), "manifest_sha256": digest, **fields})


def test_an_empty_rollback_goes_to_the_previous_version_and_blocks_nothing(rig: ManagerRig) -> None:
    sent = sum(rig.server.served.values())
    rig.status.clear()
    reply = rig.ros.call(Rollback, "ota_manager/rollback")
    assert (reply.success, reply.error_code) == (True, "")
    assert (reply.from_version, reply.to_version, reply.warm) == ("1.1.0", "1.0.0", True)
    assert reply.duration_s > 0 and reply.message
    status = rig.status.wait(lambda m: m.committed_version == "1.0.0" and m.active_version == "1.0.0")
    assert status.state_name == "ROLLED_BACK" and not status.blocked
    assert rig.policy.active[1] == "1.0.0" and rig.policy.swaps[-1].cause == "ROLLBACK"
    assert sum(rig.server.served.values()) == sent


def test_a_refused_command_is_a_warning_in_the_log_and_one_that_is_done_is_none(rig: ManagerRig) -> None:
    log = rig.ros.subscribe(Log, "/rosout", qos.LATCHED_EACH)
    assert not rig.ros.call(PinModel, "ota_manager/pin_model", PinModel.Request(version="7.7.7\x1b[31m")).success
    refused = log.wait(lambda m: m.msg.startswith("pin_model: MODEL_NOT_FOUND"), what="the refusal in the log")
    assert refused.level == Log.WARN and "\x1b" not in refused.msg
    assert rig.ros.call(PinModel, "ota_manager/pin_model").success
    done = log.wait(lambda m: m.msg.startswith("pin_model: pick_place"), what="the command in the log")
    assert done.level == Log.INFO


def test_two_rollbacks_at_once_go_back_one_version(ros_domain: int, tmp_path: Path) -> None:
    with ManagerRig(ros_domain, tmp_path) as rig:
        rig.start()
        for version in ("1.0.0", "1.1.0", "1.2.0"):
            rig.install(version)
        refused = rig.ros.call(Rollback, "ota_manager/rollback", Rollback.Request(version="7.7.7"))
        assert refused.error_code == "MODEL_NOT_FOUND"  # from here on the service is known
        rig.policy.swapping.clear()
        with ThreadPoolExecutor(2) as people:
            asked = [people.submit(rig.ros.call, Rollback, "ota_manager/rollback") for _ in range(2)]
            wait_for(lambda: rig.ros.asked("ota_manager/rollback") == 2, "both requests")
            for _ in range(3):  # they were sent before these
                assert rig.ros.call(ListModels, "ota_manager/list_models").success
            rig.policy.swapping.set()
            replies = [future.result() for future in asked]
        assert [(reply.success, reply.to_version) for reply in replies] == [(True, "1.1.0")] * 2
        status = rig.status.wait(lambda m: m.committed_version == "1.1.0" and m.active_version == "1.1.0")
        assert status.previous_version == "1.0.0" and rig.policy.active[1] == "1.1.0"


@pytest.mark.parametrize(
    ("request_fields", "code"),
    [
        ({"version": "7.7.7"}, "MODEL_NOT_FOUND"),
        ({"version": "1.0.0", "expected_from_version": "7.7.7"}, "EXPECTATION_FAILED"),
    ],
)
def test_a_rollback_that_cannot_be_is_refused_with_a_code(
    rig: ManagerRig, request_fields: dict[str, str], code: str
) -> None:
    active, swaps = rig.policy.active, len(rig.policy.swaps)
    reply = rig.ros.call(Rollback, "ota_manager/rollback", Rollback.Request(**request_fields))
    assert (reply.success, reply.error_code) == (False, code) and reply.message
    assert (rig.policy.active, len(rig.policy.swaps)) == (active, swaps)


def test_list_models_says_what_is_on_disk_and_what_it_is(rig: ManagerRig) -> None:
    reply = rig.ros.call(ListModels, "ota_manager/list_models")
    assert reply.success and reply.free_bytes > 0 and reply.history
    models = {model.version: model for model in reply.models}
    assert {"1.0.0", "1.1.0"} <= set(models)
    committed = [model.version for model in reply.models if model.committed]
    assert committed == [rig.policy.active[1]] == [model.version for model in reply.models if model.active]
    assert models["1.0.0"].digest == rig.digests["1.0.0"] and models["1.0.0"].installed.sec > 0
    assert not rig.ros.call(ListModels, "ota_manager/list_models", ListModels.Request(name="other")).models


def test_pin_and_unpin(rig: ManagerRig) -> None:
    committed = rig.policy.active[1]
    assert list(rig.ros.call(PinModel, "ota_manager/pin_model").pinned) == [committed]
    assert rig.ros.call(PinModel, "ota_manager/pin_model").success  # twice is no error
    rig.status.wait(lambda m: list(m.pinned) == [committed])
    reply = rig.ros.call(PinModel, "ota_manager/pin_model", PinModel.Request(unpin=True))
    assert reply.success and not reply.pinned
    reply = rig.ros.call(PinModel, "ota_manager/pin_model", PinModel.Request(version="7.7.7"))
    assert (reply.success, reply.error_code) == (False, "MODEL_NOT_FOUND") and reply.message


def test_commit_and_unblock_without_an_occasion_say_so(rig: ManagerRig) -> None:
    reply = rig.ros.call(CommitModel, "ota_manager/commit_model")
    assert (reply.success, reply.error_code, reply.committed_version) == (False, "NO_TRIAL", rig.policy.active[1])
    assert not rig.ros.call(UnblockModel, "ota_manager/unblock_model").success
    reply = rig.ros.call(UnblockModel, "ota_manager/unblock_model", UnblockModel.Request(version="1.0.0"))
    assert reply.success and not reply.blocked


def test_install_model_shows_its_progress_and_succeeds_at_committed(rig: ManagerRig) -> None:
    sent = rig.ros.send_goal(InstallModel, "ota_manager/install_model", goal(rig, "1.2.0"))
    assert sent.accepted
    sent.feedback.wait(lambda m: m.state == "TRIAL" and "chunks" in m.message, what="the evidence so far")
    rig.behave(1.0, lambda: rig.policy.active[1] == "1.2.0" and not rig.policy.on_trial)
    result = sent.result()
    assert (result.success, result.error_code, result.state, result.version) == (True, "", "COMMITTED", "1.2.0")
    assert sent.status() == GoalStatus.STATUS_SUCCEEDED
    assert result.duration_s > 0 and result.bytes_downloaded > 0


def test_install_model_can_end_at_trial_and_a_person_can_commit(rig: ManagerRig) -> None:
    rig.publish("1.3.0")
    sent = rig.ros.send_goal(InstallModel, "ota_manager/install_model", goal(rig, "1.3.0", wait_for_commit=False))
    result = sent.result()
    assert (result.success, result.state) == (True, "TRIAL")
    wrong = rig.ros.call(CommitModel, "ota_manager/commit_model", CommitModel.Request(expected_version="7.7.7"))
    assert (wrong.success, wrong.error_code) == (False, "EXPECTATION_FAILED")
    reply = rig.ros.call(CommitModel, "ota_manager/commit_model", CommitModel.Request(reason="exercise"))
    assert reply.success and reply.committed_version == "1.3.0"
    rig.status.wait(lambda m: m.committed_version == "1.3.0")


def test_install_model_is_cancelled_during_the_download_and_the_download_is_kept(rig: ManagerRig) -> None:
    rig.publish("1.5.0", size=2_000_000)
    path = f"/blobs/sha256/{rig.weights('1.5.0')}"
    rig.server.behave(path, Behaviour(rate_bytes_s=200_000))
    swaps = len(rig.policy.swaps)
    sent = rig.ros.send_goal(InstallModel, "ota_manager/install_model", goal(rig, "1.5.0", activate=False))
    feedback = sent.feedback.wait(lambda m: m.state == "FETCHING" and 0 < m.bytes_done < m.bytes_total)
    assert 0 < feedback.progress < 1
    assert sent.cancel()
    result = sent.result()
    assert (result.success, result.error_code, result.state) == (False, "CANCELLED", "CANCELLED")
    assert sent.status() == GoalStatus.STATUS_CANCELED
    assert rig.status.wait(lambda m: m.state_name == "CANCELLED").error_code == "CANCELLED"
    assert len(rig.policy.swaps) == swaps

    rig.server.be_good()
    again = rig.ros.send_goal(InstallModel, "ota_manager/install_model", goal(rig, "1.5.0", activate=False))
    result = again.result()
    assert (result.success, result.state) == (True, "INSTALLED")
    assert 0 < result.bytes_downloaded < 2_000_000


def test_install_model_cannot_be_cancelled_once_it_acts(rig: ManagerRig) -> None:
    rig.publish("1.7.0")
    sent = rig.ros.send_goal(InstallModel, "ota_manager/install_model", goal(rig, "1.7.0"))
    sent.feedback.wait(lambda m: m.state == "TRIAL")
    assert not sent.cancel()
    assert rig.ros.call(CommitModel, "ota_manager/commit_model").success
    assert sent.result().state == "COMMITTED"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"manifest_url": ""}, "OFFER_INVALID"),
        ({"manifest_sha256": "0" * 64}, "MANIFEST_DIGEST_MISMATCH"),
        ({"version": "7.7.7"}, "VERSION_MISMATCH"),
    ],
)
def test_a_bad_goal_is_aborted_with_a_code(rig: ManagerRig, fields: dict[str, str], code: str) -> None:
    sent = rig.ros.send_goal(InstallModel, "ota_manager/install_model", goal(rig, "1.0.0", **fields))
    result = sent.result()
    assert (result.success, result.error_code, result.state) == (False, code, "REJECTED")
    assert result.message and sent.status() == GoalStatus.STATUS_ABORTED


def test_a_version_that_the_policy_node_cannot_load_fails_with_its_words(rig: ManagerRig) -> None:
    rig.publish("1.8.0")
    rig.policy.prepare_error = "GOLDEN_MISMATCH"
    try:
        active = rig.policy.active
        sent = rig.ros.send_goal(InstallModel, "ota_manager/install_model", goal(rig, "1.8.0"))
        result = sent.result()
        assert (result.success, result.error_code) == (False, "GOLDEN_MISMATCH") and result.state in (
            "REJECTED",
            "FAILED",
        )
        assert rig.policy.active == active
    finally:
        rig.policy.prepare_error = ""
