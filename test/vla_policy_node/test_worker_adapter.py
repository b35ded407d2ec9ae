"""An adapter acts on its base's weights where they lie: right numbers, memory for its own alone, else a refusal with a code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.refusals import refused
from support.scripted import BALLAST, adapter_bundle, base_bundle
from support.worker_robot import WorkerRobot

from vla_checkpoint.bundle import open_bundle
from vla_policy_node.worker.adapter import find_base, write_changes
from vla_policy_node.worker.api import Generation
from vla_policy_node.worker.plan import lay_out, lay_out_changes


def offsets(robot: WorkerRobot, generation: Generation) -> np.ndarray:
    found: np.ndarray = robot.chunk(generation)["actions"][0]
    return found


def spoil(folder: Path, name: str = "model.safetensors") -> None:
    """Change the last bytes of a file on the disk."""
    path = folder / name
    data = bytearray(path.read_bytes())
    data[-8:] = bytes(byte ^ 1 for byte in data[-8:])
    path.write_bytes(data)


def test_adapters_share_the_base_in_memory_and_only_they_are_read_and_kept(tmp_path: Path) -> None:
    base = base_bundle(tmp_path)
    first, second = (adapter_bundle(tmp_path, version, base, seed) for version, seed in (("1.0.1", 1), ("1.0.2", 2)))
    with WorkerRobot(spare=False) as robot:
        full = robot.pool.prepare(tmp_path / "1.0.0")
        whole = robot.weights_bytes
        spoil(tmp_path / "1.0.0")  # of its files nothing but header and manifest is looked at any more
        one = robot.pool.prepare(tmp_path / "1.0.1")
        assert np.allclose(offsets(robot, one), first, atol=1e-6) and np.allclose(offsets(robot, full), (0.1, 0.2))
        robot.pool.release(full)
        two = robot.pool.prepare(tmp_path / "1.0.2")
        assert np.allclose(offsets(robot, two), second, atol=1e-6) and np.allclose(
            offsets(robot, one), first, atol=1e-6
        )
        grown = robot.weights_bytes - whole
        assert whole > BALLAST.nbytes and grown < BALLAST.nbytes / 10
        with refused("NO_FREE_SLOT"):
            robot.pool.prepare(tmp_path / "1.0.1")


def test_an_adapter_brings_its_base_into_memory_if_nobody_has_and_a_damaged_base_is_refused(tmp_path: Path) -> None:
    base = base_bundle(tmp_path)
    acts = adapter_bundle(tmp_path, "1.0.1", base, 1, use_rslora=True, lora_alpha=4)
    with WorkerRobot(spare=False) as robot:
        one = robot.pool.prepare(tmp_path / "1.0.1")
        assert np.allclose(offsets(robot, one), acts, atol=1e-6)
        robot.pool.release(one)
    spoil(tmp_path / "1.0.0")
    with WorkerRobot(spare=False) as robot, refused("DIGEST_TENSOR"):
        robot.pool.prepare(tmp_path / "1.0.1")


def test_adapters_on_two_bases_are_in_memory_together(tmp_path: Path) -> None:
    """Else a robot that runs an adapter could never change to one on the next base."""
    one, two = tmp_path / "pick_place", tmp_path / "other"
    first = adapter_bundle(one, "1.0.1", base_bundle(one), 1)
    second = adapter_bundle(two, "1.0.2", base_bundle(two, frequency_hz=0.3), 2)
    with WorkerRobot(spare=False) as robot:
        for folder, version, acts in ((one, "1.0.1", first), (two, "1.0.2", second)):
            assert np.allclose(offsets(robot, robot.pool.prepare(folder / version)), acts, atol=1e-6)


def test_a_base_that_was_let_go_is_still_there_for_an_adapter_until_other_weights_lie_there(tmp_path: Path) -> None:
    one, two = tmp_path / "pick_place", tmp_path / "other"
    copying = {"copies_weights": True, "lets_go": True}
    base = base_bundle(one, **copying)
    acts = adapter_bundle(one, "1.0.1", base, 1)
    base_bundle(two, frequency_hz=0.3, **copying)
    with WorkerRobot(spare=False) as robot:
        full = robot.pool.prepare(one / "1.0.0")
        spoil(one / "1.0.0")
        adapted = robot.pool.prepare(one / "1.0.1")  # it keeps views: its base's weights stay
        robot.pool.release(full)
        other = robot.pool.prepare(two / "1.0.0")
        assert np.allclose(offsets(robot, adapted), acts, atol=1e-6) and np.allclose(offsets(robot, other), (0.1, 0.2))
        for generation in (adapted, other):
            robot.pool.release(generation)
        robot.pool.prepare(two / "1.0.0")
        with refused(
            "DIGEST_TENSOR"
        ):  # until now the base's weights were in memory, and its spoilt file of no interest
            robot.pool.prepare(one / "1.0.0")


def test_what_a_policy_writes_to_its_weights_reaches_nobody_who_acts_on_them(tmp_path: Path) -> None:
    base = base_bundle(tmp_path, spoils_weights=True)
    acts = adapter_bundle(tmp_path, "1.0.1", base, 1)
    with WorkerRobot(spare=False) as robot:
        full = robot.pool.prepare(tmp_path / "1.0.0")
        robot.chunk(full)
        assert np.allclose(offsets(robot, robot.pool.prepare(tmp_path / "1.0.1")), acts, atol=1e-6)


def test_an_adapter_is_not_merged_into_weights_that_nobody_has_checked(tmp_path: Path) -> None:
    adapter_bundle(tmp_path, "1.0.1", base_bundle(tmp_path), 1)
    bundle = open_bundle(tmp_path / "1.0.1")
    adapted = find_base(bundle)
    assert adapted is not None
    weights, _ = lay_out(adapted.base)
    changed, _ = lay_out_changes(adapted.changes)
    plan = {"weights": weights, "changed": changed}
    file = tmp_path / "1.0.0" / "model.safetensors"
    data = bytearray(file.read_bytes())
    at = next(t["start"] for t in weights[0]["tensors"] if t["name"] == "mix.weight")
    data[at + 2] ^= 1
    file.write_bytes(data)  # after the bundle was looked at
    fd = os.memfd_create("merged")
    with refused("DIGEST_TENSOR"):
        write_changes(bundle, adapted, plan, None, fd, 0)
    os.close(fd)


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"use_dora": True}, "ADAPTER_UNSUPPORTED"),
        ({"peft_type": "IA3"}, "ADAPTER_UNSUPPORTED"),
        ({"init_lora_weights": "pissa"}, "ADAPTER_UNSUPPORTED"),
        ({"rank_pattern": {"(x+)+": 4}}, "ADAPTER_UNSUPPORTED"),  # could take for ever to match
        ({"r": 8}, "ADAPTER_MISMATCH"),
    ],
)
def test_more_than_a_plain_lora_is_refused_by_name(tmp_path: Path, config: dict[str, Any], code: str) -> None:
    adapter_bundle(tmp_path, "1.0.1", base_bundle(tmp_path), 1, **config)
    with WorkerRobot(spare=False) as robot:
        with refused(code):
            robot.pool.prepare(tmp_path / "1.0.1")
        robot.assert_works(robot.pool.prepare(tmp_path / "1.0.0"))


def test_an_adapter_without_its_base_or_with_damaged_matrices_is_refused(tmp_path: Path) -> None:
    base = base_bundle(tmp_path)
    adapter_bundle(tmp_path, "1.0.1", base, 1)
    spoil(tmp_path / "1.0.1", "adapter_model.safetensors")
    with WorkerRobot(spare=False) as robot:
        with refused("DIGEST_TENSOR"):
            robot.pool.prepare(tmp_path / "1.0.1")
        (tmp_path / "1.0.0").rename(tmp_path / "elsewhere")
        with refused("BASE_MISSING"):
            robot.pool.prepare(tmp_path / "1.0.1")
        robot.pool.prepare(tmp_path / "elsewhere")
        robot.pool.prepare(tmp_path / "elsewhere")  # both places are free
