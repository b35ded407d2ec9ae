# SPDX-License-Identifier: Apache-2.0
"""What did it see? The recorder beside a real policy node and a simulated arm, and its file through two bundles."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from PIL import Image
from std_srvs.srv import Trigger
from support.recordings import Recording
from support.ros import NodeProcess, RosHarness
from support.waits import wait_for
from vla_ota.msg import PolicyStatus

from vla_ros import qos
from vla_ros.start import REFUSED
from vla_sim.bundle import SHIPPED_BUNDLE, seal, write_own_golden

TOP = Path(__file__).resolve().parents[2]
CONTRACT = TOP / "config" / "sim_arm.contract.yaml"
PLANTED_RAD = 0.05
BEFORE_S, AFTER_S = 8.0, 1.0
_LOAD_S = 100.0  # a worker imports torch, and so do those of the replays
pytestmark = pytest.mark.timeout(300)


@dataclass
class Happened:
    """A robot's policy lost its worker; what the recorder has kept of it."""

    folder: Path
    path: Path
    status: Any  # the first one that says so
    log: str

    @property
    def recording(self) -> Recording:
        return Recording(self.path)


def workers_of(node: NodeProcess) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-f", "vla_policy_node.worker", "-P", str(node.process.pid)],
        check=False,
        capture_output=True,
        text=True,
    )
    return [int(pid) for pid in found.stdout.split()]


@pytest.fixture(scope="module")
def happened(shared_domain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Happened]:
    """A simulated arm does its tasks for some seconds; then its policy's worker is killed."""
    folder = tmp_path_factory.mktemp("robot")
    policy = {"contract": str(CONTRACT), "model_path": str(SHIPPED_BUNDLE), "spare_worker": False, "reload_attempts": 0}
    recorder = {"contract": str(CONTRACT), "recording_dir": str(folder / "recordings"), "min_free_bytes": 0}
    recorder |= {"before_s": BEFORE_S, "after_s": AFTER_S}
    space, logs = "/boxed", folder / "logs"

    def node(module: str, **parameters: Any) -> NodeProcess:
        return NodeProcess(module, shared_domain, logs, parameters=parameters, namespace=space)

    with (
        RosHarness(shared_domain, namespace=space) as ros,
        node("vla_sim.ros.sim_robot"),
        node("vla_recorder.ros.recorder", **recorder) as box,
        node("vla_policy_node.ros.policy_node", **policy) as acting,
    ):
        status = ros.subscribe(PolicyStatus, "policy_node/status", qos.LATCHED)
        diagnostics = ros.subscribe(DiagnosticArray, "/diagnostics")
        running = PolicyStatus.STATE_RUNNING
        status.wait(lambda m: m.state == running and m.episode_id, timeout_s=_LOAD_S, what="an episode")
        diagnostics.wait(
            lambda m: any(
                s.name == "boxed/recorder: black box" and s.level == b"\0" and float(s.values[0].value) > BEFORE_S - 0.5
                for s in m.status
            ),
            what="a full ring",
        )
        for pid in workers_of(acting):
            os.kill(pid, signal.SIGKILL)
        held = status.wait(lambda m: m.hold_reason == "WORKER_LOST", what="the hold")
        path = wait_for(lambda: next((folder / "recordings").glob("*_hold-worker_lost.mcap"), None), "the recording")
        assert ros.call(Trigger, "recorder/save").success
        assert box.stop() == 0
        yield Happened(folder, path, held, box.log)
    assert "Traceback" not in box.log, box.log


def test_the_recording_of_a_hold_holds_what_the_robot_saw_before_it_and_the_hold(happened: Happened) -> None:
    recording = happened.recording
    held = [m for m in recording.messages if m.topic == "/boxed/policy_node/status" and m.value.holding]
    first = next(m for m in held if m.value.hold_reason == "WORKER_LOST")
    assert first.value.active_version == "" or first.value.message
    begin_ns, end_ns = recording.messages[0].received_ns, recording.messages[-1].received_ns
    assert BEFORE_S - 1.5 < (first.received_ns - begin_ns) / 1e9 < BEFORE_S + 1.5
    assert (end_ns - first.received_ns) / 1e9 > AFTER_S - 0.5
    assert recording.causes == ["hold-worker_lost"]
    before = {
        topic: [m.value for m in recording.messages if m.topic == topic and m.received_ns < first.received_ns]
        for topic in {m.topic for m in recording.messages}
    }
    seconds = (first.received_ns - begin_ns) / 1e9
    assert len(before["/boxed/joint_states"]) > 10 * seconds
    assert len(before["/boxed/forward_position_controller/commands"]) > 10 * seconds
    assert {s.generation for s in before["/boxed/anomaly_score"]} == {1}  # which generation's actions these were
    assert (
        before["/boxed/motion_enabled"][-1].data and before["/boxed/policy_node/swap_report"][0].to_version == "1.0.0"
    )
    assert before["/boxed/policy_node/status"][-1].state == PolicyStatus.STATE_RUNNING
    pictures = before["/boxed/camera/image_raw/compressed"]
    assert 0.5 * seconds < len(pictures) < 3 * seconds
    picture = Image.open(io.BytesIO(bytes(pictures[-1].data)))
    assert picture.format == "JPEG" and len(set(picture.convert("RGB").getdata())) > 10


def replayed(happened: Happened, *arguments: str, ok: bool = True) -> tuple[str, dict[str, Any]]:
    command = [sys.executable, "-m", "vla_policy_node.replay.ros.cli", str(happened.path), "--contract", str(CONTRACT)]
    out = happened.folder / f"out-{len(list(happened.folder.glob('out-*')))}"
    done = subprocess.run(
        [*command, *arguments, "--out", str(out)],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=2 * _LOAD_S,
        check=False,
    )
    assert (done.returncode == 0) is ok and "Traceback" not in done.stderr, done.stderr
    return (done.stdout, json.loads((out / "replay.json").read_text())) if ok else (done.stderr, {})


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle, whose second joint goes elsewhere."""
    folder = tmp_path_factory.mktemp("planted") / "b"
    shutil.copytree(SHIPPED_BUNDLE, folder)
    stats = json.loads((folder / "stats.json").read_text())
    stats["action"]["mean"][1] += PLANTED_RAD
    (folder / "stats.json").write_text(json.dumps(stats))
    write_own_golden(folder)
    seal(folder, "1.0.1", {})
    return folder


def test_a_bundle_does_not_differ_from_itself(happened: Happened) -> None:
    text, document = replayed(happened, "--a", str(SHIPPED_BUNDLE), "--b", str(SHIPPED_BUNDLE))
    (comparison,) = document["comparisons"]
    assert [c["largest"] for c in comparison["channels"]] == [0.0, 0.0, 0.0] and comparison["actions"] > 50
    assert re.search(r"^  j2 +0 +0 +0 +rad", text, re.MULTILINE)


def test_a_planted_difference_is_shown_in_its_channel_with_its_size_and_in_the_picture(
    happened: Happened, planted: Path
) -> None:
    _, document = replayed(happened, "--a", str(SHIPPED_BUNDLE), "--b", str(planted), "--against", "commands")
    bundles, of_commands, of_planted = document["comparisons"]
    for channel, expected in zip(bundles["channels"], (0.0, PLANTED_RAD, 0.0), strict=True):
        assert channel["mean"] == pytest.approx(expected, abs=1e-6) and channel["largest"] == pytest.approx(
            expected, abs=1e-6
        )
    assert [b["version"] for b in document["bundles"]] == ["1.0.0", "1.0.1"]
    # What acted then is nearer to what was commanded than what did not.
    assert of_planted["channels"][1]["mean"] > of_commands["channels"][1]["mean"]
    picture = Image.open(next(happened.folder.glob("out-*/replay.png")))
    assert picture.format == "PNG" and picture.width > 800


def test_a_policy_alone_is_compared_with_what_the_robot_did(happened: Happened) -> None:
    text, document = replayed(happened, "--a", str(SHIPPED_BUNDLE))
    (comparison,) = document["comparisons"]
    assert "the recorded commands" in text and comparison["actions"] > 50
    for channel in comparison["channels"]:  # it is the one that commanded; limits and blending lie between
        assert channel["mean"] < 5 * channel["step"] and channel["largest"] > 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--a", "/nowhere"], "FILE_MISSING"),
        (["--a", str(SHIPPED_BUNDLE), "--namespace", "arm_2"], "BAG_TOPIC_MISSING: .*/arm_2/camera/image_raw"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_its_code(happened: Happened, arguments: list[str], code: str) -> None:
    assert re.match(code, replayed(happened, *arguments, ok=False)[0])


def test_a_recorder_without_a_folder_to_write_to_refuses_to_start(ros_domain: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    parameters = {"contract": str(CONTRACT), "recording_dir": str(tmp_path / "file" / "recordings")}
    with NodeProcess("vla_recorder.ros.recorder", ros_domain, tmp_path / "logs", parameters=parameters) as node:
        assert node.wait() == REFUSED and "RECORDING_IO" in node.log
