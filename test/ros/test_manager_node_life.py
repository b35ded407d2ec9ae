"""The manager's process: wrong parameters end it with one line, signals end it cleanly, SIGKILL loses nothing."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from support.bundles import flip_last_byte
from support.manager_rig import ManagerRig
from support.ros import NodeProcess
from support.waits import wait_for
from vla_ota.action import InstallModel

from vla_ota_manager.errors import ConfigError
from vla_ota_manager.ros.manager_node import OtaManagerNode
from vla_ota_manager.ros.settings import NodeConfig
from vla_ros.runtime import run
from vla_ros.start import REFUSED
from vla_sim.checkpoint_server import Behaviour

SIZE = 3_000_000


def the_line(log: str) -> str:
    """Return the one fatal line of a program that gave up, which shows no traceback."""
    assert "Traceback" not in log
    lines = [line for line in log.splitlines() if "[FATAL]" in line]
    assert len(lines) == 1, log
    return lines[0]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"alpha": 7.0}, "PARAMETER_INVALID: alpha"),
        ({"retries": "many"}, "PARAMETER_INVALID: retries"),
        ({"allowed_sources": [1, 2]}, "PARAMETER_INVALID: allowed_sources"),
        ({"trial_lease_s": 1.0}, "PARAMETER_INVALID: trial_lease_s"),
        ({"allowed_sources": ["ftp://host/"]}, "PARAMETER_INVALID"),
        ({"score_topics": ["collision:hard_limit"]}, "PARAMETER_INVALID: score_topics"),
        ({"store_dir": "/proc/nowhere"}, "STORE_IO: /proc/nowhere"),
        ({"store_dir": "~nobody-of-this-name/store"}, "PARAMETER_INVALID: store_dir"),
        (
            {"keep_version": 9},
            "PARAMETER_INVALID: keep_version: ota_manager has no such parameter; did you mean keep_versions?",
        ),
    ],
)
def test_a_wrong_parameter_ends_the_program_with_one_clear_line(
    ros_domain: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], parameters: dict[str, Any], words: str
) -> None:
    file = tmp_path / "parameters.yaml"
    values = {"store_dir": str(tmp_path / "store"), **parameters}
    file.write_text(json.dumps({"/**": {"ros__parameters": values}}))
    assert run(OtaManagerNode, ["--ros-args", "--params-file", str(file)]) == REFUSED
    assert words in the_line(capfd.readouterr().err)


@pytest.mark.parametrize(
    "settings",
    [
        {"policy_node": "no node"}, {"score_topics": ("a topic:x",)}, {"score_topics": ("same", "same:x")},
        {"score_topics": ("force:no source",)}, {"permission_timeout_s": 0.0},
    ],
)  # fmt: skip
def test_a_setting_of_the_ros_side_that_cannot_be_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        NodeConfig(**settings)
    assert caught.value.where in settings


def test_arguments_that_ros_does_not_understand_end_the_program_with_one_clear_line(
    ros_domain: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(OtaManagerNode, ["--ros-args", "-p", "nonsense"]) == REFUSED
    assert "ARGUMENTS_INVALID" in the_line(capfd.readouterr().err)


def test_a_clean_end_costs_nothing_and_a_second_manager_is_refused(ros_domain: int, tmp_path: Path) -> None:
    with ManagerRig(ros_domain, tmp_path) as rig:
        rig.start()
        digest = rig.publish("1.0.0", size=SIZE)
        path = f"/blobs/sha256/{rig.weights('1.0.0')}"
        rig.server.behave(path, Behaviour(stall_after=500_000))
        update_id = rig.offer("1.0.0", digest)
        rig.status.wait(lambda m: m.state_name == "FETCHING" and m.bytes_done > 200_000)
        goal = InstallModel.Goal(manifest_url=rig.url("1.0.0"), manifest_sha256=digest)
        waiting = rig.ros.send_goal(InstallModel, "ota_manager/install_model", goal)
        waiting.feedback.wait(lambda m: m.state == "IDLE")
        assert rig.manager is not None and rig.manager.stop(signal.SIGTERM) == 0
        assert "Traceback" not in rig.manager.log and "never retrieved" not in rig.manager.log
        assert waiting.result().error_code == "ENGINE_STOPPED"
        last = rig.status.last
        assert last.state_name == "FETCHING" and last.update_id == update_id

        rig.server.be_good()
        rig.start()
        rig.wait_update(update_id, "TRIAL")
        with NodeProcess("vla_ota_manager.ros.manager_node", ros_domain, tmp_path, parameters=rig.parameters) as second:
            assert second.wait() == 1
            assert "STORE_LOCKED" in the_line(second.log)
        assert rig.manager.stop(signal.SIGINT) == 0
        state = json.loads((rig.store / "state.json").read_text())
        assert state["trial"]["clean"] and not state["attempts"]

        rig.start()
        rig.prove(update_id)
        assert (rig.store / "current").resolve().name == "1.0.0"


def test_damage_on_the_disk_is_in_the_status_and_the_diagnostics(ros_domain: int, tmp_path: Path) -> None:
    with ManagerRig(ros_domain, tmp_path) as rig:
        manager = rig.start()
        rig.install("1.0.0")
        assert list(rig.status.last.damaged) == []
        manager.kill()
        flip_last_byte(rig.store / "models/pick_place/1.0.0/model.safetensors")
        diagnostics = rig.ros.subscribe(DiagnosticArray, "/diagnostics")
        rig.start()
        rig.status.wait(lambda m: list(m.damaged) == ["1.0.0"], what="the damage in the status")
        wait_for(
            lambda: any(
                s.name == "ota_manager: store" and s.level == s.WARN and "model.safetensors" in s.message
                for array in diagnostics.messages
                for s in array.status
            ),
            "the damage in the diagnostics",
        )
