"""Training is seeded and ends in a whole, valid bundle; what it writes, the policy node's loader takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vla_checkpoint import load_manifest, verify_bundle
from vla_sim.arm import BLOCK_SIZE_M, Arm
from vla_sim.bundle import SHIPPED_BUNDLE, load_policy, read_weights, statistics
from vla_sim.camera import render
from vla_sim.dataset import collect, expert_chunks
from vla_sim.expert import expert_chunk, goal_point
from vla_sim.observation import observe
from vla_sim.train import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs with the same seed, one with another, each of a handful of steps."""
    root = tmp_path_factory.mktemp("trained")
    for name, seed in (("a", "5"), ("again", "5"), ("other", "6")):
        assert main(["--out", str(root / name), "--seed", seed, "--scale", "0.001", "--threads", "1"]) == 0
    return {path.name: path for path in root.iterdir()}


def test_it_writes_a_valid_bundle_that_loads(trained: dict[str, Path]) -> None:
    verify_bundle(trained["a"])
    assert load_manifest(trained["a"]).lineage["recipe"]["seed"] == 5
    policy = load_policy(trained["a"])
    chunk = policy.predict_chunk(observe(Arm()), "reach the red block")
    assert chunk.shape == (50, 3)
    assert policy.spec.execute < policy.spec.horizon


def test_the_seed_decides_the_weights(trained: dict[str, Path]) -> None:
    first, again, other = (read_weights(trained[name]) for name in ("a", "again", "other"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["head.weight"], other["head.weight"])


def test_it_has_the_architecture_of_the_shipped_bundle(trained: dict[str, Path]) -> None:
    """The repository's weights are what this script makes, not what an earlier one made."""
    mine, shipped = read_weights(trained["a"]), read_weights(SHIPPED_BUNDLE)
    assert {name: array.shape for name, array in mine.items()} == {name: array.shape for name, array in shipped.items()}
    configurations = [json.loads((bundle / "config.json").read_text()) for bundle in (trained["a"], SHIPPED_BUNDLE)]
    assert configurations[0] == configurations[1]


def test_frames_show_what_was_there_and_the_expert_is_asked_from_there() -> None:
    frames = collect(40, np.random.default_rng(0))
    assert len(frames) == 40
    for i in (0, 17, 39):
        assert np.array_equal(frames.images[i], render(frames.joints[i], frames.blocks[i]))
    colours = np.arange(40) % 4
    chunks = expert_chunks(frames, colours, 10)
    goal = goal_point(frames.blocks[17, colours[17]], BLOCK_SIZE_M)
    assert chunks[17] == pytest.approx(expert_chunk(frames.joints[17], goal, 10))


def test_a_mirrored_frame_is_the_frame_of_the_mirrored_scene() -> None:
    frames = collect(10, np.random.default_rng(1))
    mirrored = frames.mirrored()
    drawn = render(mirrored.joints[3], mirrored.blocks[3]).astype(int)
    assert np.abs(mirrored.images[3].astype(int) - drawn).max() <= 1
    chunk, other = (expert_chunks(f, np.zeros(10, np.intp), 20) for f in (frames, mirrored))
    assert other == pytest.approx(chunk * [-1.0, 1.0, 1.0], abs=1e-9)


def test_statistics_are_those_of_the_data() -> None:
    values = np.random.default_rng(2).normal([1.0, -2.0], [0.5, 3.0], size=(4000, 2))
    stats = statistics(values)
    assert stats["mean"] == pytest.approx([1.0, -2.0], abs=0.2)
    assert stats["std"] == pytest.approx([0.5, 3.0], rel=0.1)
    for d in range(2):
        assert stats["min"][d] < stats["q01"][d] < stats["mean"][d] < stats["q99"][d] < stats["max"][d]
