# SPDX-License-Identifier: Apache-2.0
"""Every feature that is normalised has statistics that can be used; a configuration says what every policy needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from support.bundles import plain_stats, write_folder, write_json, write_processors
from support.refusals import refused

from vla_checkpoint import CheckpointError, load_config
from vla_checkpoint.config import PolicyConfig
from vla_checkpoint.stats import Stats, load_stats


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
        target: Any = document
        for level in levels:
            target = target[int(level) if isinstance(target, list) else level]
        if value is ...:
            del target[last]
        else:
            target[int(last) if isinstance(target, list) else last] = value
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
    edit(folder / "config.json", {"chunk_size": ...})
    assert load(folder)[0].chunk_size == 8


def test_a_diffusion_policys_chunk_is_what_its_horizon_leaves_after_the_newest_observation(folder: Path) -> None:
    edit(folder / "config.json", {"chunk_size": ..., "horizon": 16, "n_obs_steps": 2})
    assert load(folder)[0].chunk_size == 15
    edit(folder / "config.json", {"horizon": 2, "n_obs_steps": 3})
    with refused("CONFIG_FIELD_INVALID"):
        load(folder)


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
        (b'{"a":' * 100 + b"1" + b"}" * 100, "JSON_LIMIT"), (b'{"a":' + b"[" * 90_000, "JSON_LIMIT"),
        (b'{"a": [' + b"0," * 300_000 + b"0]}", "JSON_LIMIT"), (b'{"a": "' + b"a" * 1_000_000 + b'"}', "FILE_TOO_LARGE"),
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
        ({"action/max": [1.0]}, "STATS_DIMENSION"), ({"observation.state/std": [1.0, 0.0]}, "STATS_STD"),
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


def refusal(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        config = load_config(folder)
        load_stats(folder, [path.name for path in folder.iterdir()], config, channels=("shoulder", "gripper"))
    return caught.value


WITHOUT_SPREAD = [
    ("MEAN_STD", {"std": [0.5, 0.0]}, "STATS_STD"),
    ("MEAN_STD", {"std": [0.5, 1e-60]}, "STATS_STD"),  # 0 in float32
    ("MEAN_STD", {"std": [0.5, 1e-9]}, "STATS_STD"),  # rounding, where nothing moved
    ("MIN_MAX", {"min": [0.0, 2.0], "max": [1.0, 2.0]}, "STATS_ORDER"),
    ("MIN_MAX", {"min": [0.0, 2.0], "max": [1.0, 2.0 + 1e-12]}, "STATS_ORDER"),
    ("QUANTILES", {"q01": [0.0, 2.0], "q99": [1.0, 2.0]}, "STATS_ORDER"),
    ("QUANTILE10", {"q10": [0.0, 2.0], "q90": [1.0, 2.0]}, "STATS_ORDER"),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "stats", "code"), WITHOUT_SPREAD)
def test_an_input_that_never_moved_is_refused_by_channel_in_every_mode(
    folder: Path, mode: str, stats: dict[str, Any], code: str
) -> None:
    edit(folder / "config.json", {"normalization_mapping/STATE": mode})
    edit(folder / "stats.json", {"observation.state": stats if mode != "MEAN_STD" else {"mean": [0.0, 0.0], **stats}})
    error = refusal(folder)
    assert error.code == code
    assert error.reason.startswith("observation.state[1] (action channel 1 is gripper): no spread")


@pytest.mark.parametrize(("mode", "stats", "code"), WITHOUT_SPREAD)
def test_an_action_that_never_moves_is_accepted(folder: Path, mode: str, stats: dict[str, Any], code: str) -> None:
    edit(folder / "config.json", {"normalization_mapping/ACTION": mode})
    edit(folder / "stats.json", {"action": {"mean": [0.0, 0.0], **stats}})
    load(folder)


@pytest.mark.parametrize(
    ("feature", "change"),
    [
        ("action", {"mean": [0.0, 1e300]}), ("action", {"std": [1.0, 1e39]}), ("observation.state", {"q99": [3.0, 1e200]}),
        ("observation.state", {"min": [-3.0, -3e38], "max": [3.0, 3e38]}),
    ],
)  # fmt: skip
def test_statistics_that_are_infinite_in_float32_are_refused_by_channel(
    folder: Path, feature: str, change: dict[str, Any]
) -> None:
    edit(folder / "config.json", {"normalization_mapping/STATE": "MIN_MAX"})
    edit(folder / "stats.json", {f"{feature}/{name}": value for name, value in change.items()})
    error = refusal(folder)
    assert error.code == "STATS_NOT_FINITE"
    assert error.reason.startswith(f"{feature}[1] (") and "gripper" in error.reason


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([[0.0, 0.0]], "STATS_DIMENSION"), ([[0.0], [0.0]], "STATS_DIMENSION"), ([[[0.0]], [[0.0]]], "STATS_DIMENSION"),
        (0.0, "STATS_DIMENSION"), ([0.0, [0.0]], "STATS_FORMAT"), ([[0.0], []], "STATS_FORMAT"),
    ],
)  # fmt: skip
def test_numbers_in_other_lists_than_the_features_are_refused(folder: Path, value: Any, code: str) -> None:
    edit(folder / "stats.json", {"observation.state/mean": value})
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


PLAIN = {"observation.state": plain_stats(2), "action": plain_stats(2)}


@pytest.mark.parametrize(("step", "class_name"), [(3, False), (7, True)])
def test_processor_files_stand_in_for_stats_json_wherever_their_step_is(
    folder: Path, step: int, class_name: bool
) -> None:
    (folder / "stats.json").unlink()
    write_processors(folder, PLAIN, step=step, class_name=class_name)
    assert load(folder)[1]["action"]["max"].tolist() == [3.0, 3.0]


def test_processor_statistics_are_judged_like_the_others(folder: Path) -> None:
    (folder / "stats.json").unlink()
    write_processors(folder, {**PLAIN, "action": {**plain_stats(2), "std": [-1.0, 1.0]}})
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
    error = refusal(folder)
    assert (error.code, Path(error.path).name) == ("STATS_MISSING", "policy_postprocessor.json")


CAMERA = "observation.images.top"
NORM = "steps/1/config/norm_map"
FEATURES = "steps/1/config/features"


@pytest.mark.parametrize(
    ("processor", "change", "named"),
    [
        ("post", {f"{NORM}/ACTION": "IDENTITY"}, "'action'"),
        ("post", {f"{NORM}/ACTION": "MIN_MAX"}, "'action'"),
        ("post", {f"{NORM}/ACTION": ...}, "'action'"),
        ("post", {FEATURES: {}}, "'action'"),
        ("post", {f"{FEATURES}/action/shape": [3]}, "'action'"),
        ("post", {"steps/1/registry_name": "normalizer_processor"}, "unnormalizer"),
        ("pre", {NORM: {}}, "'observation.state'"),
        ("pre", {f"{NORM}/STATE": "QUANTILES"}, "'observation.state'"),
        ("pre", {f"{NORM}/VISUAL": "MEAN_STD"}, "'observation.images.top'"),
        ("pre", {f"{FEATURES}/observation.state": ...}, "'observation.state'"),
        ("pre", {f"{FEATURES}/observation.state/type": "ENV"}, "'observation.state'"),
        ("pre", {"steps/1/config/normalize_observation_keys": [CAMERA]}, "'observation.state'"),
        ("pre", {"steps/1/config/eps": 10}, "eps"),
        ("pre", {"steps/1/config/stats": {"observation.state": {"mean": [0, 0], "std": [1, 1]}}}, "stats"),
        ("pre", {"steps/0": {"registry_name": "normalizer_processor", "config": {"features": {}, "norm_map": {}}}}, "second"),
    ],
)  # fmt: skip
def test_a_processor_that_normalises_otherwise_than_the_configuration_says_is_refused(
    folder: Path, processor: str, change: dict[str, Any], named: str
) -> None:
    """LeRobot would do what the processor says: each of these moves a robot to other places than in training."""
    write_processors(folder, PLAIN)
    load(folder)
    edit(folder / f"policy_{processor}processor.json", change)
    error = refusal(folder)
    assert (error.code, Path(error.path).name) == ("STATS_PROCESSOR_MISMATCH", f"policy_{processor}processor.json")
    assert named in error.reason


def test_what_a_processor_says_of_features_that_are_not_normalised_does_not_matter(folder: Path) -> None:
    write_processors(folder, PLAIN)
    edit(
        folder / "policy_preprocessor.json",
        {
            f"{FEATURES}/{CAMERA}": ...,
            f"{FEATURES}/action": ...,
            f"{FEATURES}/observation.effort": {"type": "STATE", "shape": [2]},
            "steps/1/config/normalize_observation_keys": ["observation.state"],
        },
    )
    load(folder)


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


def test_a_postprocessor_of_another_training_is_refused(folder: Path) -> None:
    (folder / "stats.json").unlink()
    write_processors(folder, {**PLAIN, "action": {**plain_stats(2), "std": [57.0, 57.0]}})
    state = next(folder.glob("policy_postprocessor_step_*.safetensors"))
    other = state.read_bytes()
    write_processors(folder, PLAIN)
    state.write_bytes(other)
    assert code_of(folder) == "STATS_CONFLICT"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("lerobot.policies.smolvla.processor_smolvla.SmolVLANewLineProcessor", ""),
        ("lerobot.processor.DeviceProcessorStep", ""),
        ("os.system", "PROCESSOR_CLASS"),
        ("lerobot_extras.processor.EvilProcessor", "PROCESSOR_CLASS"),
        (None, "PROCESSOR_CLASS"),
    ],
)
def test_a_processor_step_of_foreign_code_is_refused(folder: Path, name: str | None, code: str) -> None:
    """LeRobot imports and calls whatever ``class`` names."""
    (folder / "stats.json").unlink()
    write_processors(folder, PLAIN)
    document = json.loads((folder / "policy_preprocessor.json").read_text())
    document["steps"].append({"class": name, "config": {}})
    write_json(folder / "policy_preprocessor.json", document)
    if code:
        assert code_of(folder) == code
    else:
        load(folder)
