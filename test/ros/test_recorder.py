# SPDX-License-Identifier: Apache-2.0
"""What did it see? The recorder beside a real policy node and a simulated arm, and its file through two bundles."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from PIL import Image
from std_srvs.srv import Trigger
from support.engine_rig import contract_text
from support.recordings import Recording
from support.ros import NodeProcess, RosHarness
from support.scripted import POLICY_MODULES, TEST_FOLDER, scripted_bundle
from support.waits import wait_for
from vla_ota.msg import PolicyStatus, SwapReport

from vla_checkpoint import Channel
from vla_ros import qos
from vla_ros.start import REFUSED

TOP = Path(__file__).resolve().parents[2]
CONTRACT = TOP / "config" / "sim_arm.contract.yaml"
MODULES = [f"{kind}={module}" for kind, module in POLICY_MODULES.items()]
PLANTED_RAD = 0.1
BEFORE_S, AFTER_S = 5.0, 1.0
JOINTS = tuple(Channel(name, "rad", "absolute") for name in ("j1", "j2", "j3"))


@dataclass
class Happened:
    """A robot's policy lost its worker; what the recorder has kept of it."""

    folder: Path
    path: Path
    acted: Path  # the bundle

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


def bundle(path: Path, version: str, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Path:
    """A policy that goes a little way from where it sees itself; the same observation gets the same answer."""
    images = {"observation.images.top": (64, 64)}
    scripted_bundle(
        path, version, channels=JOINTS, amplitude=0.03, offset=offset, from_state=True, images=images, golden=False
    )
    return path


def of_the_loss(folder: Path) -> Path | None:
    """On a busy machine the robot may have held a moment before: then one recording has both causes."""
    return next((p for p in folder.glob("*.mcap") if "hold-worker_lost" in Recording(p).causes), None)


@pytest.fixture(scope="module")
def happened(shared_domain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Happened]:
    """A simulated arm does its tasks for some seconds; then its policy's worker is killed."""
    folder = tmp_path_factory.mktemp("robot")
    contract = folder / "contract.yaml"
    contract.write_text(re.sub(r"(tolerance_ms|max_age_ms): \d+", r"\1: 3000", CONTRACT.read_text()))  # a busy machine
    acted = bundle(folder / "1.0.0", "1.0.0")
    policy = {"contract": str(contract), "model_path": str(acted), "spare_worker": False, "reload_attempts": 0}
    policy |= {"policy_modules": MODULES, "worker_paths": [TEST_FOLDER], "worker_imports": [""]}
    recorder = {"contract": str(contract), "recording_dir": str(folder / "recordings"), "min_free_bytes": 0}
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
        status = ros.subscribe(PolicyStatus, "policy_node/status", qos.LATCHED_EACH)
        diagnostics = ros.subscribe(DiagnosticArray, "/diagnostics")
        reports = ros.subscribe(SwapReport, "policy_node/swap_report", qos.LATCHED_EACH)
        running = PolicyStatus.STATE_RUNNING
        status.wait(lambda m: m.state == running and m.episode_id, timeout_s=90.0, what="an episode")
        reports.wait(what="the report of the first swap")
        diagnostics.wait(
            lambda m: any(
                s.name == "boxed/recorder: black box" and s.level == b"\0" and float(s.values[0].value) > BEFORE_S - 0.5
                for s in m.status
            ),
            what="a full ring",
        )
        for pid in workers_of(acting):
            os.kill(pid, signal.SIGKILL)
        status.wait(lambda m: m.hold_reason == "WORKER_LOST", what="the hold")
        path = wait_for(lambda: of_the_loss(folder / "recordings"), "the recording")
        assert ros.call(Trigger, "recorder/save").success
        assert box.stop() == 0
        yield Happened(folder, path, acted)
    assert "Traceback" not in box.log, box.log


def test_the_recording_of_a_hold_holds_what_the_robot_saw_before_it_and_the_hold(happened: Happened) -> None:
    recording = happened.recording
    held = [m for m in recording.messages if m.topic == "/boxed/policy_node/status" and m.value.holding]
    first = next(m for m in held if m.value.hold_reason == "WORKER_LOST")
    begin_ns, end_ns = recording.messages[0].received_ns, recording.messages[-1].received_ns
    assert (first.received_ns - begin_ns) / 1e9 > BEFORE_S - 1.5 and (end_ns - first.received_ns) / 1e9 > AFTER_S - 0.5
    before = {
        topic: [m.value for m in recording.messages if m.topic == topic and m.received_ns < first.received_ns]
        for topic in {m.topic for m in recording.messages}
    }
    assert len(before["/boxed/joint_states"]) > 20 and len(before["/boxed/forward_position_controller/commands"]) > 5
    assert {s.generation for s in before["/boxed/anomaly_score"]} == {1}  # which generation's actions these were
    assert (
        before["/boxed/motion_enabled"][-1].data and before["/boxed/policy_node/swap_report"][0].to_version == "1.0.0"
    )
    assert before["/boxed/policy_node/status"][-1].state == PolicyStatus.STATE_RUNNING
    pictures = before["/boxed/camera/image_raw/compressed"]
    assert 2 < len(pictures) < 3 * (end_ns - begin_ns) / 1e9
    picture = Image.open(io.BytesIO(bytes(pictures[-1].data)))
    assert picture.format == "JPEG" and len(np.unique(np.asarray(picture))) > 10


def replayed(happened: Happened, *arguments: str, ok: bool = True) -> tuple[str, dict[str, Any]]:
    command = [sys.executable, "-m", "vla_policy_node.replay.ros.cli", str(happened.path), "--contract"]
    command += [str(happened.folder / "contract.yaml")]
    command += ["--policy-module", MODULES[0], "--worker-path", TEST_FOLDER]
    out = happened.folder / f"out-{len(list(happened.folder.glob('out-*')))}"
    done = subprocess.run(
        [*command, *arguments, "--out", str(out)], cwd=TOP, capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode == 0) is ok and "Traceback" not in done.stderr, done.stderr
    return (done.stdout, json.loads((out / "replay.json").read_text())) if ok else (done.stderr, {})


def test_a_bundle_does_not_differ_from_itself(happened: Happened) -> None:
    text, document = replayed(happened, "--a", str(happened.acted), "--b", str(happened.acted))
    (comparison,) = document["comparisons"]
    assert [c["largest"] for c in comparison["channels"]] == [0.0, 0.0, 0.0] and comparison["actions"] >= 40
    assert re.search(r"^  j2 +0 +0 +0 +rad", text, re.MULTILINE)


def test_a_planted_difference_is_shown_in_its_channel_with_its_size_and_in_the_picture(
    happened: Happened, tmp_path: Path
) -> None:
    other = bundle(tmp_path / "1.1.0", "1.1.0", (0.0, PLANTED_RAD, 0.0))
    _, document = replayed(happened, "--a", str(happened.acted), "--b", str(other), "--against", "commands")
    bundles, of_commands, of_planted = document["comparisons"]
    for channel, expected in zip(bundles["channels"], (0.0, PLANTED_RAD, 0.0), strict=True):
        assert channel["mean"] == pytest.approx(expected, abs=1e-5) == channel["largest"]
    assert [b["version"] for b in document["bundles"]] == ["1.0.0", "1.1.0"]
    # What acted then is nearer to what was commanded than what did not.
    assert of_planted["channels"][1]["mean"] > of_commands["channels"][1]["mean"]
    with Image.open(sorted(happened.folder.glob("out-*/replay.png"))[-1]) as picture:
        assert picture.format == "PNG" and picture.width > 800


def test_a_policy_alone_is_compared_with_what_the_robot_was_commanded(happened: Happened) -> None:
    text, document = replayed(happened, "--a", str(happened.acted))
    (comparison,) = document["comparisons"]
    assert "the recorded commands" in text and comparison["actions"] > 5
    for channel in comparison["channels"]:  # it is the one that commanded; limits and blending lie between
        assert channel["mean"] < PLANTED_RAD and channel["largest"] > 0.0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--a", "/nowhere"], "BUNDLE_NOT_A_FOLDER: "),
        (["--a", "/nowhere", "--namespace", "arm_2"], "BAG_TOPIC_MISSING: .*/arm_2/camera/image_raw"),
        (
            ["--a", str(TOP / "vla_sim/bundles/reach_block/1.0.0"), "--contract", "two_joints.yaml"],
            "BAG_TOPIC_MISSING: ",
        ),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_its_code(
    happened: Happened, tmp_path: Path, arguments: list[str], code: str
) -> None:
    contract = tmp_path / "two_joints.yaml"
    contract.write_text(contract_text().replace("topic: joint_states", "topic: other_joints"))
    text, _ = replayed(happened, *(str(contract) if a == contract.name else a for a in arguments), ok=False)
    assert re.match(code, text) and len(text.splitlines()) == 1


def test_a_recorder_without_a_folder_to_write_to_refuses_to_start(ros_domain: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    parameters = {"contract": str(CONTRACT), "recording_dir": str(tmp_path / "file" / "recordings")}
    with NodeProcess("vla_recorder.ros.recorder", ros_domain, tmp_path / "logs", parameters=parameters) as node:
        assert node.wait() == REFUSED and "RECORDING_IO" in node.log
