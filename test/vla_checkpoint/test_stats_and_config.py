# SPDX-License-Identifier: Apache-2.0
"""Every feature that is normalised has statistics that can be used; a configuration says what every policy needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from support.bundles import plain_stats, write_folder, write_json

from vla_checkpoint import CheckpointError, PolicyConfig, Stats, load_config, load_stats


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "b", images={"observation.images.top": (6, 8)})
    return tmp_path / "b"


def load(folder: Path) -> tuple[PolicyConfig, Stats]:
    config = load_config(folder)
    return config, load_stats(folder, [path.name for path in folder.iterdir()], config)


def code_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    return caught.value.code


def edit(path: Path, change: dict[str, Any]) -> None:
    """Set dotted keys (``/`` between levels) of a JSON file; ``...`` removes."""
    document = json.loads(path.read_text())
    for where, value in change.items():
        *levels, last = where.split("/")
        target = document
        for level in levels:
            target = target[level]
        if value is ...:
            del target[last]
        else:
            target[last] = value
    write_json(path, document)


def test_what_lerobot_writes_is_read(folder: Path) -> None:
    config, stats = load(folder)
    assert config.type == "scripted"
    assert config.input_features["observation.images.top"].shape == (3, 6, 8)
    assert config.input_features["observation.images.top"].array_shape == (6, 8, 3)
    assert {key: mode for key, (_, mode) in config.normalized_features().items()} == {
        "observation.state": "MEAN_STD",
        "action": "MEAN_STD",
    }
    assert stats["action"]["std"].tolist() == [1.0, 1.0]


def test_a_policy_without_chunk_size_returns_what_it_executes(folder: Path) -> None:
    edit(folder / "config.json", {"chunk_size": ..., "horizon": 16})
    assert load(folder)[0].chunk_size == 8


@pytest.mark.parametrize(
    "key", ["type", "input_features", "output_features", "normalization_mapping", "n_action_steps"]
)
def test_a_missing_key_of_the_configuration_is_named(folder: Path, key: str) -> None:
    edit(folder / "config.json", {key: ...})
    with pytest.raises(CheckpointError, match=key) as caught:
        load(folder)
    assert caught.value.code == "CONFIG_FIELD_MISSING"


@pytest.mark.parametrize(
    "change",
    [
        {"type": 1}, {"type": ""}, {"input_features": {}}, {"input_features": []}, {"output_features": {}},
        {"output_features/action/shape": [2, 2]}, {"output_features/action/shape": []}, {"output_features/action/shape": [0]},
        {"output_features/action/shape": [True]}, {"output_features/action/shape": [2.0]}, {"output_features/action/type": 1},
        {"input_features/action": {"type": "STATE", "shape": [1]}}, {"input_features/x": None},
        {"normalization_mapping": []}, {"normalization_mapping/STATE": "Z_SCORE"}, {"normalization_mapping/STATE": None},
        {"chunk_size": 0}, {"chunk_size": 7}, {"chunk_size": 1.5}, {"chunk_size": True}, {"n_action_steps": -1},
        {"n_obs_steps": 0},
    ],
)  # fmt: skip
def test_a_configuration_out_of_its_domain_is_refused(folder: Path, change: dict[str, Any]) -> None:
    edit(folder / "config.json", change)
    assert code_of(folder) == "CONFIG_FIELD_INVALID"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "JSON_SYNTAX"), (b"[]", "JSON_SYNTAX"), (b'{"type": NaN}', "JSON_SYNTAX"),
        (b'{"a": 1, "a": 1}', "JSON_DUPLICATE_KEY"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "JSON_TOO_DEEP"), (b'{"a":' + b"[" * 90_000, "JSON_TOO_DEEP"),
        (b'{"a": [' + b"0," * 300_000 + b"0]}", "JSON_TOO_LARGE"), (b'{"a": "' + b"a" * 1_000_000 + b'"}', "FILE_TOO_LARGE"),
        (b'{"\xff": 1}', "JSON_SYNTAX"),
        (b'{"\\udc00": 1}', "JSON_SYNTAX"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["config.json", "stats.json"])
def test_what_is_no_strict_json_is_refused(folder: Path, name: str, content: bytes, code: str) -> None:
    (folder / name).write_bytes(content)
    assert code_of(folder) == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"action": ...}, "STATS_MISSING"), ({"observation.state": ...}, "STATS_MISSING"), ({"action/std": ...},
        "STATS_MISSING"),
        ({"action/mean": [0.0]}, "STATS_DIMENSION"), ({"action/mean": [0.0] * 3}, "STATS_DIMENSION"),
        ({"action/max": [1.0]}, "STATS_DIMENSION"), ({"action/std": [1.0, 0.0]}, "STATS_STD"),
        ({"action/std": [1.0, -1.0]}, "STATS_STD"),
        ({"action/min": [4.0, -4.0]}, "STATS_ORDER"), ({"action/q01": [0.0, 2.5]}, "STATS_ORDER"),
        ({"action/q10": [2.5, 0.0], "action/q90": [2.0, 1.0]}, "STATS_ORDER"),
        ({"action": []}, "STATS_FORMAT"), ({"action/mean": "0"}, "STATS_FORMAT"),
        ({"action/mean": [True, False]}, "STATS_FORMAT"),
        ({"action/mean": [None, 0]}, "STATS_FORMAT"), ({"action/median": [0.0, 0.0]}, "STATS_FORMAT"),
    ],
)  # fmt: skip
def test_statistics_that_cannot_be_used_are_refused(folder: Path, change: dict[str, Any], code: str) -> None:
    edit(folder / "stats.json", change)
    assert code_of(folder) == code


def test_each_mode_needs_its_own_statistics(folder: Path) -> None:
    needed = {"MIN_MAX": "max", "QUANTILES": "q99", "QUANTILE10": "q90", "MEAN_STD": "std"}
    full = {**plain_stats(2), "q10": [-1.0, -1.0], "q90": [1.0, 1.0]}
    for mode, name in needed.items():
        edit(folder / "config.json", {"normalization_mapping/ACTION": mode})
        edit(folder / "stats.json", {"action": full})
        load(folder)
        edit(folder / "stats.json", {"action": {key: value for key, value in full.items() if key != name}})
        assert code_of(folder) == "STATS_MISSING"


def test_what_is_not_normalised_needs_none(folder: Path) -> None:
    edit(folder / "config.json", {"normalization_mapping": {}})
    (folder / "stats.json").unlink()
    assert load(folder)[1] == {}


def test_statistics_of_other_features_are_not_judged(folder: Path) -> None:
    edit(folder / "stats.json", {"task_index": {"mean": [0.0], "std": [0.0], "count": [5]}})
    load(folder)


def test_pictures_have_one_number_a_channel(folder: Path) -> None:
    edit(folder / "config.json", {"normalization_mapping/VISUAL": "MEAN_STD"})
    camera = "observation.images.top"
    assert code_of(folder) == "STATS_MISSING"
    edit(folder / "stats.json", {camera: {"mean": [[[0.5]], [[0.5]], [[0.5]]], "std": [0.2, 0.2, 0.2]}})
    assert load(folder)[1][camera]["mean"].shape == (3,)
    edit(folder / "stats.json", {camera: {"mean": [0.5], "std": [0.2]}})
    assert code_of(folder) == "STATS_DIMENSION"


def test_no_statistics_at_all_are_refused(folder: Path) -> None:
    (folder / "stats.json").unlink()
    assert code_of(folder) == "STATS_MISSING"


def write_processors(
    folder: Path, stats: dict[str, dict[str, list[float]]], *, step: int = 5, name: str = "registry_name"
) -> None:
    """As LeRobot >= 0.4 writes them."""
    for processor, kind in (
        ("policy_preprocessor", "normalizer_processor"),
        ("policy_postprocessor", "unnormalizer_processor"),
    ):
        state_file = f"{processor}_step_{step}_{kind}.safetensors"
        steps = [
            {"registry_name": "to_batch_processor", "config": {}},
            {name: kind if name == "registry_name" else "lerobot.processor." + kind.title().replace("_", "") + "Step",
             "config": {"eps": 1e-8}, "state_file": state_file},
        ]  # fmt: skip
        write_json(folder / f"{processor}.json", {"name": processor, "steps": steps})
        tensors = {
            f"{key}.{stat}": np.array(value, np.float32)
            for key, entry in stats.items()
            for stat, value in entry.items()
        }
        safetensors.numpy.save_file(tensors, folder / state_file)


PLAIN = {"observation.state": plain_stats(2), "action": plain_stats(2)}


@pytest.mark.parametrize(("step", "name"), [(3, "registry_name"), (7, "class")])
def test_processor_files_stand_in_for_stats_json_wherever_their_step_is(folder: Path, step: int, name: str) -> None:
    (folder / "stats.json").unlink()
    write_processors(folder, PLAIN, step=step, name=name)
    assert load(folder)[1]["action"]["max"].tolist() == [3.0, 3.0]


def test_processor_statistics_are_judged_like_the_others(folder: Path) -> None:
    (folder / "stats.json").unlink()
    write_processors(folder, {**PLAIN, "action": {**plain_stats(2), "std": [0.0, 1.0]}})
    assert code_of(folder) == "STATS_STD"
    write_processors(folder, {**PLAIN, "action": {**plain_stats(2), "mean": [np.nan, 1.0]}})
    assert code_of(folder) == "STATS_NOT_FINITE"
    write_processors(folder, {"observation.state": plain_stats(2)})
    assert code_of(folder) == "STATS_MISSING"
    write_processors(folder, PLAIN)
    load(folder)


def test_actions_are_unnormalised_by_the_postprocessor_alone(folder: Path) -> None:
    """The preprocessor's copy of the action statistics does not excuse a postprocessor without them."""
    (folder / "stats.json").unlink()
    write_processors(folder, PLAIN)
    write_json(folder / "policy_postprocessor.json", {"name": "policy_postprocessor", "steps": []})
    assert code_of(folder) == "STATS_MISSING"


def test_state_files_of_other_steps_are_no_statistics(folder: Path) -> None:
    (folder / "stats.json").unlink()
    write_processors(folder, PLAIN)
    document = json.loads((folder / "policy_postprocessor.json").read_text())
    document["steps"].append({"registry_name": "filter_processor", "state_file": "filter.safetensors"})
    write_json(folder / "policy_postprocessor.json", document)
    safetensors.numpy.save_file({"action.mean": np.full(2, 9.0, np.float32)}, folder / "filter.safetensors")
    assert load(folder)[1]["action"]["mean"].tolist() == [0.0, 0.0]


def test_a_state_file_that_is_not_there_is_refused(folder: Path) -> None:
    (folder / "stats.json").unlink()
    write_processors(folder, PLAIN)
    for state_file in ("other.safetensors", "../policy_preprocessor_step_5_normalizer_processor.safetensors", 5):
        steps = [{"registry_name": "normalizer_processor", "state_file": state_file}]
        write_json(folder / "policy_preprocessor.json", {"steps": steps})
        assert code_of(folder) == "STATS_STATE_FILE"
    for document in ({}, {"steps": {}}, {"steps": [1]}):
        write_json(folder / "policy_preprocessor.json", document)
        assert code_of(folder) == "STATS_FORMAT"


def test_two_sources_must_agree(folder: Path) -> None:
    write_processors(folder, PLAIN)
    load(folder)
    write_processors(folder, {**PLAIN, "action": {**plain_stats(2), "mean": [0.1, 0.0]}})
    assert code_of(folder) == "STATS_CONFLICT"
