"""A torch policy loads in a worker, from weights where they lie, while the node's process stays free of torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.refusals import refused
from support.scripted import TEST_FOLDER
from support.worker_robot import STATE, WorkerRobot, thread_levels

from vla_checkpoint import open_bundle
from vla_policy_node.desk.cli import main
from vla_policy_node.policies.base import FeatureSpec
from vla_policy_node.worker.environment import PACKAGE_ROOT

CAMERA = "observation.images.top"
FEATURES = {STATE: FeatureSpec((2,), "float32"), CAMERA: FeatureSpec((32, 32, 3), "uint8")}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_vla")
    script = [sys.executable, "-m", "support.tiny_vla_bundles", str(folder)]  # torch stays out of this process
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE_ROOT), TEST_FOLDER])}
    subprocess.run(script, check=True, timeout=100, env=environment)
    return folder


def test_a_torch_policy_is_prepared_and_infers(bundles: Path) -> None:
    with WorkerRobot(FEATURES, imports=("torch",)) as robot:
        spare = robot.spare_ready(timeout_s=60.0)
        assert "libtorch" in Path(f"/proc/{spare}/maps").read_text()  # imported ahead
        generation = robot.pool.prepare(bundles / "good")
        assert generation.pid == spare
        assert generation.spec.observation == FEATURES
        assert generation.timings.golden_s > 0
        robot.observe(instruction="red block")
        answer = robot.answer(generation, robot.request(generation))
        assert answer is not None
        assert answer["error"] == ""
        assert answer["actions"].shape == (20, 2)
        assert np.isfinite(answer["actions"]).all()
        # no thread that inference waits for is left at the loader's level
        assert set(thread_levels(generation.pid).values()) == {os.getpriority(os.PRIO_PROCESS, 0)}


def test_a_torch_policy_that_answers_otherwise_than_its_golden_chunks_is_refused(bundles: Path) -> None:
    with WorkerRobot(FEATURES, imports=(), spare=False) as robot, refused("GOLDEN_MISMATCH"):
        robot.pool.prepare(bundles / "wrong")


def test_a_torch_policy_records_golden_chunks_that_another_process_repeats(bundles: Path, tmp_path: Path) -> None:
    """From the bundle whose golden chunks are another policy's: they are replaced by its own."""
    bundle = tmp_path / "b"
    shutil.copytree(bundles / "wrong", bundle)
    assert main(["golden", str(bundle), "--frames", "2", "--instruction", "red block", "--tolerance", "1e-4"]) == 0
    golden = open_bundle(bundle).golden()
    assert golden is not None
    assert golden.instructions == ("red block",) * 2
    assert golden.observations[CAMERA].shape == (2, 32, 32, 3) and golden.action.std() > 0


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_torch_cannot_use_is_named_in_the_refusal(bundles: Path, device: str) -> None:
    with WorkerRobot(FEATURES, imports=(), spare=False, device=device) as robot, refused("DEVICE_UNUSABLE") as refusal:
        robot.pool.prepare(bundles / "good")
    assert repr(device) in str(refusal.value)


def test_weights_that_a_torch_policy_has_copied_make_room_for_the_next_ones(bundles: Path) -> None:
    """As on a GPU: the CPU computes in float32, so of weights in half precision nothing is used where it lies."""
    with WorkerRobot(FEATURES, imports=("torch",), spare=False) as robot:
        robot.pool.prepare(bundles / "half")
        once = robot.weights_bytes
        robot.pool.prepare(bundles / "half")
        assert robot.weights_bytes == once
    with WorkerRobot(FEATURES, imports=("torch",), spare=False) as robot:
        robot.pool.prepare(bundles / "good")
        once = robot.weights_bytes
        robot.pool.prepare(bundles / "good")
        assert robot.weights_bytes == 2 * once, "the CPU uses float32 where it lies"
