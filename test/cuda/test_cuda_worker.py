"""Generations on a GPU: they act as on the CPU, take the memory they should, and what goes wrong in one costs no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GPU
from support.refusals import refused
from support.scripted import TEST_FOLDER, scripted_bundle
from support.tiny_vla_bundles import CAMERA
from support.waits import wait_for
from support.worker_robot import STATE, WorkerRobot

from vla_checkpoint import open_bundle
from vla_policy_node.policies.base import FeatureSpec
from vla_policy_node.worker.api import Generation

FEATURES = {STATE: FeatureSpec((2,), "float32"), CAMERA: FeatureSpec((32, 32, 3), "uint8")}
TOLERANCE = {"tiny": 0.01, "old": 1e-3}  # of the bundles' golden chunks, which were made on the CPU


def robot_on(device: str, **config: Any) -> WorkerRobot:
    modules = {"bench_transformer": "benchmarks.transformer", "scripted": "asserting_policy"}
    return WorkerRobot(
        FEATURES, device=device, policy_modules=modules, paths=(TEST_FOLDER, str(Path(__file__).parent)), imports=("torch",),
        load_timeout_s=300.0, spare=False, **config,
    )  # fmt: skip


@pytest.fixture
def robot() -> Iterator[WorkerRobot]:
    with robot_on(GPU) as running:
        yield running


def free_bytes() -> int:
    return torch.cuda.mem_get_info(GPU)[0]


def weights_bytes(bundle: Path) -> int:
    return sum(i.nbytes for header in open_bundle(bundle).headers.values() for i in header.tensors.values())


def actions(robot: WorkerRobot, generation: Generation) -> np.ndarray:
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    robot.observe(instruction="red block", state=rng.standard_normal(2) * 0.1, **{CAMERA: picture})
    answer = robot.answer(generation, robot.request(generation))
    assert answer is not None and answer["error"] == ""
    found: np.ndarray = answer["actions"].copy()
    return found


@pytest.mark.parametrize("name", TOLERANCE)
def test_actions_are_those_of_the_cpu(bundles: dict[str, Path], robot: WorkerRobot, name: str) -> None:
    generation = robot.pool.prepare(bundles[name])
    assert generation.timings.golden_s > 0 and generation.timings.golden_difference <= TOLERANCE[name]
    with robot_on("cpu") as other:
        expected = actions(other, other.pool.prepare(bundles[name]))
    assert np.abs(expected).max() > TOLERANCE[name]
    assert np.allclose(actions(robot, generation), expected, rtol=0.0, atol=TOLERANCE[name])


def test_two_generations_take_the_host_memory_of_one_and_leave_the_gpu_as_it_was(
    bundles: dict[str, Path], robot: WorkerRobot
) -> None:
    size, before = weights_bytes(bundles["old"]), free_bytes()
    old = robot.pool.prepare(bundles["old"])
    once, expected, after = robot.weights_bytes, actions(robot, old), free_bytes()
    assert before - after >= size
    new = robot.pool.prepare(bundles["new"])
    assert robot.weights_bytes == once
    assert np.allclose(
        actions(robot, old), expected, rtol=0.0, atol=1e-6
    )  # though the other one's weights lay in its host memory
    robot.assert_works(new)
    robot.pool.release(new)
    robot.pool.release(old)
    wait_for(lambda: free_bytes() >= before - size // 2, "the memory of both")


def test_a_gpu_that_is_not_there_is_named_and_what_acts_goes_on(bundles: dict[str, Path], robot: WorkerRobot) -> None:
    acting = robot.pool.prepare(bundles["tiny"])
    missing = f"cuda:{torch.cuda.device_count()}"
    with robot_on(missing) as other, refused("DEVICE_UNUSABLE") as refusal:
        other.pool.prepare(bundles["tiny"])
    assert repr(missing) in str(refusal.value)
    robot.assert_works(acting)


def test_a_full_gpu_refuses_the_next_generation_and_what_acts_goes_on(
    bundles: dict[str, Path], robot: WorkerRobot
) -> None:
    size, before = weights_bytes(bundles["old"]), free_bytes()
    acting = robot.pool.prepare(bundles["old"])
    robot.assert_works(acting)
    needed = before - free_bytes()
    hog = torch.empty(
        free_bytes() - (needed - size // 2), dtype=torch.uint8, device=GPU
    )  # half of the weights would fit
    with refused("OUT_OF_MEMORY"):
        robot.pool.prepare(bundles["new"])
    robot.assert_works(acting)
    del hog
    torch.cuda.empty_cache()
    robot.assert_works(robot.pool.prepare(bundles["new"]))
    robot.assert_works(acting)


def test_a_generation_that_loses_its_context_costs_no_other(
    tmp_path: Path, bundles: dict[str, Path], robot: WorkerRobot
) -> None:
    """The reason for which a generation is a process on a GPU too."""
    scripted_bundle(tmp_path / "b")
    acting, losing = robot.pool.prepare(bundles["old"]), robot.pool.prepare(tmp_path / "b")
    expected = actions(robot, acting)
    robot.assert_works(losing)
    for instruction in ("lose", "reach"):
        robot.observe(instruction=instruction)
        answer = robot.answer(losing, robot.request(losing))
        assert answer is not None and answer["error"] == "POLICY_FAILED"
    assert np.allclose(actions(robot, acting), expected, rtol=0.0, atol=1e-6)
    robot.pool.release(losing)
    robot.assert_works(robot.pool.prepare(bundles["new"]))
