# SPDX-License-Identifier: Apache-2.0
"""Golden observations come back as they were written, and fit the policy they are for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from support.bundles import make_bundle, plain_golden
from support.refusals import refused

from vla_checkpoint import Golden, limits, open_bundle, read_golden, write_golden

CAMERA = "observation.images.top"


def observations(count: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "observation.state": rng.standard_normal((count, 2), dtype=np.float32),
        CAMERA: rng.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8),
    }


def chunks(count: int = 3) -> Any:
    return np.random.default_rng(1).standard_normal((count, 16, 2), dtype=np.float32)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "golden.safetensors"
    write_golden(path, observations(), chunks(), ["reach the red block", "стоп", ""], [0.01, 0.02])
    golden = read_golden(path)
    assert len(golden) == 3
    assert golden.instructions == ("reach the red block", "стоп", "")
    assert golden.action.dtype == golden.tolerance.dtype == np.float32
    assert np.array_equal(golden.action, chunks())
    assert golden.tolerance.tolist() == pytest.approx([0.01, 0.02])
    assert golden.observations.keys() == observations().keys()
    for name, array in observations().items():
        assert golden.observations[name].dtype == array.dtype
        assert np.array_equal(golden.observations[name], array)


def test_the_seed_of_a_policy_that_draws_random_numbers_is_kept(tmp_path: Path) -> None:
    for seed in (None, 0, 2**32 - 1):
        write_golden(tmp_path / "g", observations(), chunks(), ["a"] * 3, 0.5, seed)
        assert read_golden(tmp_path / "g").seed == seed
    for wrong in (-1, 2**32, 1.5):
        with refused("GOLDEN_FORMAT"):
            write_golden(tmp_path / "g", observations(), chunks(), ["a"] * 3, 0.5, wrong)  # type: ignore[arg-type]


def test_one_tolerance_serves_every_channel(tmp_path: Path) -> None:
    write_golden(tmp_path / "g", observations(), chunks(), ["a"] * 3, 0.5)
    assert read_golden(tmp_path / "g").tolerance.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"action": chunks()[0]}, "GOLDEN_FORMAT"),
        (
            {"action": np.zeros((0, 16, 2), np.float32), "observations": observations(0), "instructions": []},
            "GOLDEN_FORMAT",
        ),
        ({"action": np.full((3, 16, 2), np.nan, np.float32)}, "GOLDEN_FORMAT"),
        ({"observations": {}}, "GOLDEN_FORMAT"),
        ({"observations": observations(2)}, "GOLDEN_SHAPE"),
        ({"observations": {"observation.state": np.full((3, 2), np.inf, np.float32)}}, "GOLDEN_FORMAT"),
        ({"instructions": ["a"]}, "GOLDEN_FORMAT"),
        ({"instructions": ["a", "b", 3]}, "GOLDEN_FORMAT"),
        ({"tolerance": [0.1]}, "GOLDEN_FORMAT"),
        ({"tolerance": -0.1}, "GOLDEN_FORMAT"),
        ({"tolerance": float("nan")}, "GOLDEN_FORMAT"),
        ({"tolerance": 1e300}, "GOLDEN_FORMAT"),
    ],
)
def test_what_could_not_be_replayed_is_not_written(tmp_path: Path, arguments: dict[str, Any], code: str) -> None:
    path = tmp_path / "golden.safetensors"
    values: dict[str, Any] = {
        "observations": observations(),
        "action": chunks(),
        "instructions": ["a"] * 3,
        "tolerance": 0.1,
    }
    with refused(code):
        write_golden(path, **{**values, **arguments})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"instructions": "[]"},
        {"instructions": "x", "tolerance": "1"},
        {"instructions": '["a","a"]', "tolerance": "true"},
    ],
)
def test_files_of_others_are_read_as_strictly(tmp_path: Path, metadata: dict[str, str]) -> None:
    tensors = {"action": np.zeros((2, 3, 1), np.float32), "observation.state": np.zeros((2, 1), np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "g", metadata or None)
    with refused("GOLDEN_FORMAT"):
        read_golden(tmp_path / "g")


def test_a_golden_file_too_large_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_golden(tmp_path / "g", observations(), chunks(), ["a"] * 3, 0.1)
    monkeypatch.setattr(limits, "GOLDEN_BYTES", 500)
    with refused("GOLDEN_FORMAT"):
        read_golden(tmp_path / "g")


@pytest.mark.parametrize(
    ("golden", "images"),
    [
        (plain_golden(horizon=15), None),
        (plain_golden(), {CAMERA: (6, 8)}),
        (replace(plain_golden(), observations={"observation.state": np.zeros((2, 3), np.float32)}), None),
        (replace(plain_golden(), observations={**plain_golden().observations, "extra": np.zeros((2, 1), np.float32)}), None),
        (Golden(observations(3), chunks(3), ("a",) * 3, plain_golden().tolerance), {CAMERA: (8, 6)}),
    ],
)  # fmt: skip
def test_golden_observations_that_do_not_fit_the_policy_are_refused(
    tmp_path: Path, golden: Golden, images: Any
) -> None:
    with refused("GOLDEN_SHAPE"):
        make_bundle(tmp_path / "b", golden=golden, images=images)


def test_pictures_are_bytes_in_height_width_colour_order(tmp_path: Path) -> None:
    make_bundle(
        tmp_path / "b",
        golden=Golden(observations(), chunks(), ("a",) * 3, np.full(2, 0.1, np.float32)),
        images={CAMERA: (6, 8)},
    )
    golden = open_bundle(tmp_path / "b").golden()
    assert golden is not None
    assert golden.observations[CAMERA].shape == (3, 6, 8, 3)
    floats = {**observations(), CAMERA: observations()[CAMERA].astype(np.float32)}
    with refused("GOLDEN_FORMAT"):
        make_bundle(
            tmp_path / "f",
            golden=Golden(floats, chunks(), ("a",) * 3, np.full(2, 0.1, np.float32)),
            images={CAMERA: (6, 8)},
        )


def test_metadata_is_what_the_architecture_page_says(tmp_path: Path) -> None:
    write_golden(tmp_path / "g", observations(), chunks(), ["a", "b", "c"], [0.1, 0.2])
    with safetensors.safe_open(tmp_path / "g", "np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["instructions"]) == ["a", "b", "c"]
    assert json.loads(metadata["tolerance"]) == [0.1, 0.2]


def test_the_same_golden_data_gives_the_same_bytes(tmp_path: Path) -> None:
    written = set()
    for number in range(8):  # the library's own order of metadata changes from call to call
        path = tmp_path / f"{number}.safetensors"
        write_golden(
            path, {"observation.state": np.zeros((1, 2), np.float32)}, np.zeros((1, 4, 2), np.float32), ["go"], 0.1
        )
        written.add(path.read_bytes())
    assert len(written) == 1
