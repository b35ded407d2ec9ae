# SPDX-License-Identifier: Apache-2.0
"""A bundle is fitted to a contract, proves itself in the robot's own worker code, and is checked before it is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bundles import plain_stats, write_folder, write_json
from support.engine_rig import contract_text
from support.lerobot_files import write_dataset
from support.scripted import POLICY_MODULES, TEST_FOLDER, adapter_bundle, base_bundle, scripted_bundle

from vla_checkpoint import load_manifest, open_bundle, verify_bundle
from vla_policy_node.contract.model import load_contract
from vla_policy_node.desk.cli import main
from vla_policy_node.desk.units import doubtful_units

WORKER = ["--worker-path", TEST_FOLDER, *(f"--policy-module={k}={v}" for k, v in POLICY_MODULES.items())]
STILL: dict[str, Any] = {"amplitude": 0.0, "offset": [0.2, -0.1], "golden": False}
"""A policy whose answers do not depend on the clock."""


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    path = tmp_path / "contract.yaml"
    path.write_text(contract_text())
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    run(*arguments, "--json")
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def codes(answer: dict[str, Any]) -> dict[str, str]:
    return {item["what"]: item["code"] for item in answer["checks"]}


# -- import --contract ---------------------------------------------------------------------------------------------


def test_the_contract_says_robot_type_rate_and_channels_of_an_import(tmp_path: Path, contract: Path) -> None:
    write_folder(tmp_path / "src", policy_type="act")
    assert run("import", tmp_path / "src", "--out", tmp_path / "pick/1.0.0", "--contract", contract) == 0
    manifest = verify_bundle(tmp_path / "pick/1.0.0").manifest
    assert (manifest.name, manifest.version) == ("pick", "1.0.0")
    assert (manifest.robot_type, manifest.action.rate_hz) == ("sim_arm", 50.0)
    assert [(c.name, c.unit, c.mode) for c in manifest.action.channels] == [
        ("j1", "rad", "absolute"),
        ("j2", "rad", "absolute"),
    ]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"horizon": 10, "execute": 9}, "HORIZON_TOO_SHORT"),
        ({"images": {"observation.images.top": (8, 8)}}, "OBSERVATION_MISMATCH"),
        ({"n_obs_steps": 7}, "HISTORY_UNSUPPORTED"),
    ],
)
def test_what_the_contracts_robot_would_refuse_is_not_imported(
    tmp_path: Path, contract: Path, changes: dict[str, Any], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "src", policy_type="act", **changes)
    assert run("import", tmp_path / "src", "--out", tmp_path / "pick/1.0.0", "--contract", contract) == 1
    assert capsys.readouterr().err.startswith(f"{code}: {contract}: ")
    assert not (tmp_path / "pick/1.0.0").exists()


def test_what_the_contract_says_cannot_be_typed_as_well(
    tmp_path: Path, contract: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "src", policy_type="act")
    out = tmp_path / "pick/1.0.0"
    assert run("import", tmp_path / "src", "--out", out, "--contract", contract, "--rate-hz", 30) == 1
    assert "--rate-hz" in capsys.readouterr().err
    assert run("import", tmp_path / "src", "--out", out, "--contract", tmp_path / "none.yaml") == 1
    assert capsys.readouterr().err.startswith("CONTRACT_UNREADABLE: ")


# -- units ---------------------------------------------------------------------------------------------------------


def folder_with_ranges(path: Path, low: list[float], high: list[float]) -> None:
    stats = {**plain_stats(2), "min": low, "max": high, "q01": low, "q99": high}
    write_folder(path, policy_type="act")
    write_json(path / "stats.json", {"observation.state": plain_stats(2), "action": stats})


@pytest.mark.parametrize(
    ("limits", "low", "high", "doubt"),
    [
        ("[-2.0, 2.0]", [-90.0, -1.5], [57.0, 1.5], "j1: actions in the data -90…57, contract limits -2…2 [rad]"),
        ("[-110.0, 110.0]", [-1.5, -0.2], [1.9, 1.5], "j1: actions in the data -1.5…1.9, contract limits -110…110 [rad]"),
        ("[-110.0, 110.0]", [-1.5, -0.2], [1.9, 40.0], ""),  # one joint that hardly moves is no other unit
        ("[-2.0, 2.0]", [-2.5, -1.0], [2.0, 1.5], ""),
    ],
)  # fmt: skip
def test_a_mistake_of_degrees_and_radians_is_seen_in_the_statistics(
    tmp_path: Path, limits: str, low: list[float], high: list[float], doubt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    contract, out = tmp_path / "contract.yaml", tmp_path / "pick/1.0.0"
    contract.write_text(contract_text().replace("position: [-2.0, 2.0]", f"position: {limits}"))
    folder_with_ranges(tmp_path / "src", low, high)
    imported = report(capsys, "import", tmp_path / "src", "--out", out, "--contract", contract)
    notes = [note for note in imported["notes"] if "actions in the data" in note]
    assert [note.startswith(doubt) for note in notes] == [True] * bool(doubt)
    checked = report(capsys, "check", out, "--contract", contract)
    assert codes(checked)["units"] == ("UNITS_DOUBTFUL" if doubt else "")


def test_without_extremes_two_deviations_about_the_mean_are_taken_and_the_state_is_judged_too(contract: Path) -> None:
    """LeRobot <= 0.3 keeps mean and deviation alone."""
    stats = {"observation.state": {"mean": np.array([10.0, 0.0]), "std": np.array([5.0, 1.0])}}
    (text,) = doubtful_units(stats, load_contract(contract))
    assert text.startswith("j1: state in the data 0…20, contract limits -2…2 [rad]")


# -- golden --------------------------------------------------------------------------------------------------------


def test_golden_records_the_policys_own_answers_and_a_fresh_worker_repeats_them(
    tmp_path: Path, contract: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = scripted_bundle(tmp_path / "b", **STILL)
    made = report(capsys, "golden", tmp_path / "b", *WORKER, "--frames", 3, "--tolerance", 0.002)
    bundle = verify_bundle(tmp_path / "b")
    golden = bundle.golden()
    assert golden is not None and len(golden) == 3
    assert np.allclose(golden.action, np.broadcast_to(np.float32([0.2, -0.1]), (3, 100, 2)))
    assert golden.tolerance.tolist() == pytest.approx([0.002, 0.002])
    assert made["difference"] == 0.0
    assert made["digest"] == bundle.digest != before.digest
    assert bundle.manifest.version == before.version
    checked = report(capsys, "check", tmp_path / "b", "--contract", contract, *WORKER)
    assert checked["ok"] and "3 observations replayed, largest difference 0" in str(checked["checks"])


def test_a_policy_that_draws_random_numbers_is_repeatable_with_its_seed(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "b", **STILL, noise=0.1)
    assert run("golden", tmp_path / "b", *WORKER, "--frames", 2, "--seed", 7) == 0
    first = open_bundle(tmp_path / "b").golden()
    assert run("golden", tmp_path / "b", *WORKER, "--frames", 2, "--seed", 8) == 0
    second = open_bundle(tmp_path / "b").golden()
    assert first is not None and second is not None
    assert (first.seed, second.seed) == (7, 8)
    assert first.action.std() > 0.01 and not np.array_equal(first.action, second.action)


def test_a_policy_that_does_not_repeat_itself_gets_no_golden_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = scripted_bundle(tmp_path / "b", golden=False)  # it follows the clock
    assert run("golden", tmp_path / "b", *WORKER) == 1
    refused = capsys.readouterr().err
    assert refused.startswith("GOLDEN_MISMATCH: ") and "seed(seed)" in refused
    assert verify_bundle(tmp_path / "b").manifest == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_golden_takes_observations_from_a_numpy_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripted_bundle(tmp_path / "b", **STILL)
    states = np.arange(12.0).reshape(6, 2)
    np.savez(tmp_path / "frames.npz", **{"observation.state": states, "instruction": ["a", "b", "c", "d", "e", "f"]})
    assert run("golden", tmp_path / "b", *WORKER, "--observations", tmp_path / "frames.npz", "--frames", 4) == 0
    golden = open_bundle(tmp_path / "b").golden()
    assert golden is not None
    assert golden.observations["observation.state"].tolist() == states[:4].tolist()
    assert golden.instructions == ("a", "b", "c", "d")
    np.savez(tmp_path / "wrong.npz", **{"observation.state": np.zeros((2, 3))})
    assert run("golden", tmp_path / "b", *WORKER, "--observations", tmp_path / "wrong.npz") == 1
    assert "GOLDEN_SHAPE: " in capsys.readouterr().err
    whole = (tmp_path / "frames.npz").read_bytes()
    for data in (b"", b"hello", whole[: len(whole) // 2]):
        (tmp_path / "damaged.npz").write_bytes(data)
        assert run("golden", tmp_path / "b", *WORKER, "--observations", tmp_path / "damaged.npz") == 1
        assert "GOLDEN_FORMAT: " in capsys.readouterr().err
    for array in (
        np.array([[{"a": 1}, 0]], dtype=object),
        np.array([["a", "b"]]),
        np.array([[1.0, np.nan]]),
        np.float64(1),
    ):
        np.savez(tmp_path / "no_numbers.npz", **{"observation.state": array})
        assert run("golden", tmp_path / "b", *WORKER, "--observations", tmp_path / "no_numbers.npz") == 1
        assert "GOLDEN_" in capsys.readouterr().err


def test_an_adapter_is_proven_and_checked_on_its_base_and_the_place_of_a_missing_base_is_named(
    tmp_path: Path, contract: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pick_place"
    acts = adapter_bundle(folder, "1.0.1", base_bundle(folder), 1)
    assert run("golden", folder / "1.0.1", *WORKER, "--frames", 2) == 0
    golden = open_bundle(folder / "1.0.1").golden()
    assert golden is not None and np.allclose(golden.action, acts, atol=1e-6)
    assert run("check", folder / "1.0.1", "--contract", contract, *WORKER) == 0
    (folder / "1.0.0").rename(tmp_path / "elsewhere")
    checked = report(capsys, "check", folder / "1.0.1", "--contract", contract, *WORKER)
    assert codes(checked)["policy"] == "BASE_MISSING" and str(folder / "1.0.0") in str(checked)


LEROBOT_DATASET = """
import numpy as np
class LeRobotDataset:  # gives what LeRobot 0.4.4's class gives, frame by frame
    def __init__(self, repo_id, root):
        assert (root / "meta" / "info.json").is_file()
    def __len__(self):
        return 20
    def __getitem__(self, i):
        picture = np.full((3, 4, 6), i / 255.0, np.float32)
        picture[0] = 1.0
        return {"observation.state": np.float32([i, -i]), "observation.images.top": picture, "task": f"task {i}"}
"""


def test_golden_takes_observations_from_a_data_set_through_lerobot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "site" / "lerobot" / "datasets"
    package.mkdir(parents=True)
    (package / "lerobot_dataset.py").write_text(LEROBOT_DATASET)
    data = write_dataset(tmp_path / "data")
    camera = "observation.images.top"
    scripted_bundle(tmp_path / "b", **STILL, images={camera: (4, 6)})
    command = ["golden", tmp_path / "b", *WORKER, "--dataset", data, "--frames", 3]
    assert run(*command) == 1
    assert capsys.readouterr().err.startswith("DATASET_UNREADABLE: ")
    assert run(*command, "--worker-path", tmp_path / "site") == 0
    golden = open_bundle(tmp_path / "b").golden()
    assert golden is not None
    drawn = golden.observations["observation.state"][:, 0]
    assert len(set(drawn)) == 3
    assert golden.instructions == tuple(f"task {i:.0f}" for i in drawn)
    assert golden.observations[camera].shape == (3, 4, 6, 3)
    assert [picture[0, 0].tolist() for picture in golden.observations[camera]] == [[255, i, i] for i in drawn]
    assert run("golden", tmp_path / "b", *WORKER, "--dataset", tmp_path / "none") == 1
    assert capsys.readouterr().err.startswith("IMPORT_DATASET: ")


def test_a_published_bundle_is_not_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = scripted_bundle(tmp_path / "b", **STILL)
    (tmp_path / "b" / "manifest.json").chmod(0o444)
    assert run("golden", tmp_path / "b", *WORKER) == 1
    assert capsys.readouterr().err.startswith("BUNDLE_PUBLISHED: ")
    assert load_manifest(tmp_path / "b") == before


# -- check ---------------------------------------------------------------------------------------------------------


def test_check_runs_what_the_robot_would_and_says_one_line_each(
    tmp_path: Path, contract: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted_bundle(tmp_path / "b")
    assert run("check", tmp_path / "b", "--contract", contract, *WORKER) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [
        "bundle:", "robot:", "units:", "interpreter:", "policy:", "golden:", "horizon:",
    ]  # fmt: skip
    assert "numpy" in lines[3] and "100 actions, 8 executed, 2 blended" in lines[6]


@pytest.mark.parametrize(
    ("changes", "arguments", "what", "code"),
    [
        ({"golden_error": 0.5}, WORKER, "golden", "GOLDEN_MISMATCH"),
        ({"golden": False}, WORKER, "golden", "GOLDEN_MISSING"),
        ({"horizon": 10}, WORKER, "horizon", "HORIZON_TOO_SHORT"),
        ({"rate_hz": 30.0}, WORKER, "robot", "RATE_MISMATCH"),
        ({"images": {"observation.images.top": (8, 8)}}, WORKER, "policy", "OBSERVATION_MISMATCH"),
        ({}, ["--worker-path", TEST_FOLDER], "policy", "POLICY_TYPE_UNKNOWN"),
        ({}, ["--python", "/no/such/python"], "interpreter", "WORKER_START_FAILED"),
        ({}, ["--python", "/bin/true"], "interpreter", "WORKER_START_FAILED"),
    ],
)
def test_check_fails_where_the_robot_would_refuse(
    tmp_path: Path,
    contract: Path,
    changes: dict[str, Any],
    arguments: list[str],
    what: str,
    code: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scripted_bundle(tmp_path / "b", **changes)
    checked = report(capsys, "check", tmp_path / "b", "--contract", contract, *arguments)
    assert not checked["ok"]
    assert codes(checked)[what] == code
    assert run("check", tmp_path / "b", "--contract", contract, *arguments) == 1


def test_check_begins_with_the_bytes(tmp_path: Path, contract: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripted_bundle(tmp_path / "b")
    (tmp_path / "b" / "stats.json").write_text("{}")
    assert codes(report(capsys, "check", tmp_path / "b", "--contract", contract)) == {"bundle": "BUNDLE_FILE_SIZE"}
