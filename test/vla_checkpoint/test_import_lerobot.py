# SPDX-License-Identifier: Apache-2.0
"""An import finds what LeRobot wrote, takes from it what it can, asks for the rest, and says what it changed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support.bundles import plain_stats, write_folder, write_json
from support.lerobot_files import training_run, write_dataset

from vla_checkpoint import open_bundle, verify_bundle
from vla_checkpoint.cli import main

TYPED = [
    "--robot-type",
    "so101",
    "--rate-hz",
    "30",
    "--channel",
    "shoulder:rad:absolute",
    "--channel",
    "gripper:rad:absolute",
]


def run(source: object, out: Path, *options: object) -> int:
    return main(["import", str(source), "--out", str(out), *(str(option) for option in options)])


@pytest.fixture
def imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Import with everything typed that is not in the files; return the report."""

    def imported(source: object, *options: object, status: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert run(source, tmp_path / "pick" / "1.0.0", *TYPED, *options, "--json") == status
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return imported


# -- where it lies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/last", "checkpoints/000060/pretrained_model"])
def test_a_training_run_is_imported_from_any_of_its_folders(tmp_path: Path, imported: Any, inside: str) -> None:
    folder = training_run(tmp_path / "run")
    assert imported(tmp_path / "run" / inside)["source"] == str(folder)
    verify_bundle(tmp_path / "pick" / "1.0.0")


def test_the_cache_folder_of_a_hub_name_leads_to_the_snapshot_of_its_main_branch(tmp_path: Path, imported: Any) -> None:
    cache = tmp_path / "models--me--act_pick"
    (cache / "snapshots").mkdir(parents=True)
    for revision in ("1" * 40, "2" * 40):
        training_run(tmp_path / revision).rename(cache / "snapshots" / revision)
    assert imported(cache, status=1)["code"] == "IMPORT_SOURCE"
    (cache / "refs").mkdir()
    for damaged in (b"\xff\xfe", b"../../elsewhere"):
        (cache / "refs" / "main").write_bytes(damaged)
        assert imported(cache, status=1)["code"] == "IMPORT_SOURCE"
    (cache / "refs" / "main").write_text("2" * 40)
    assert imported(cache)["lineage"]["revision"] == "2" * 40


@pytest.mark.parametrize("name", ["me/act_pick", "hf://me/act_pick", "hf://me/act_pick@v3"])
def test_a_hub_name_is_refused_with_the_command_that_fetches_it(imported: Any, name: str) -> None:
    refused = imported(name, status=1)
    assert (refused["code"], refused["path"]) == ("IMPORT_SOURCE", name)
    assert "hf download me/act_pick" in refused["reason"]
    assert ("--revision v3" in refused["reason"]) == name.endswith("v3")


def test_a_run_without_a_last_checkpoint_names_those_that_are_there(tmp_path: Path, imported: Any) -> None:
    training_run(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "last").unlink()
    assert "000060" in imported(tmp_path / "run", status=1)["reason"]


# -- what other projects write -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "code"),
    [
        (["model.safetensors", "metadata.pt"], "IMPORT_OPENPI"),
        (["model.safetensors", "assets/me/droid/norm_stats.json"], "IMPORT_OPENPI"),
        (["params/_METADATA", "assets/droid/norm_stats.json"], "IMPORT_JAX"),
        (["_CHECKPOINT_METADATA"], "IMPORT_JAX"),
        (["model.safetensors", "action_head--100_checkpoint.pt", "dataset_statistics.json"], "IMPORT_OPENVLA"),
        (["pytorch_model.bin"], "IMPORT_PICKLE"),
        (["policy.ckpt"], "IMPORT_PICKLE"),
    ],
)
def test_a_checkpoint_of_another_project_is_refused_with_the_way_to_convert_it(
    tmp_path: Path, imported: Any, files: list[str], code: str
) -> None:
    for name in files:
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_bytes(b"x")
    refused = imported(tmp_path / "src", status=1)
    assert refused["code"] == code
    assert "docs/checkpoints.md" in refused["reason"] or "save_file" in refused["reason"]


@pytest.mark.parametrize("name", ["policy.pt2", "policy.pt"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_program_is_refused_without_being_loaded(tmp_path: Path, imported: Any, name: str, alone: bool) -> None:
    (tmp_path / "src").mkdir()
    with zipfile.ZipFile(tmp_path / "src" / name, "w") as archive:  # TorchScript's layout
        archive.writestr("policy/code/__torch__.py", "class Policy(Module): ...")
        archive.writestr("policy/data.pkl", b"")
    assert imported(tmp_path / "src" / name if alone else tmp_path / "src", status=1)["code"] == "IMPORT_PROGRAM"


# -- what the data set says ----------------------------------------------------------------------------------------


def test_the_data_set_says_rate_and_robot_type_and_the_order_of_the_channels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "data")
    training_run(tmp_path / "run", dataset=data)
    out = tmp_path / "pick" / "1.0.0"
    assert run(tmp_path / "run", out) == 1
    refused = capsys.readouterr().err
    assert refused.startswith("IMPORT_INCOMPLETE: ")
    assert "--channel shoulder.pos:UNIT:absolute --channel gripper.pos:UNIT:absolute" in refused
    assert "--rate-hz" not in refused and "--robot-type" not in refused and "--name" not in refused
    assert run(tmp_path / "run", out, *TYPED[4:]) == 0
    manifest = open_bundle(out).manifest
    assert (manifest.robot_type, manifest.action.rate_hz) == ("so101_follower", 30.0)


def test_everything_that_is_not_known_is_asked_for_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training_run(tmp_path / "run")
    assert run(tmp_path / "run", tmp_path / "out") == 1
    refused = capsys.readouterr().err
    assert all(
        option in refused
        for option in (
            "--name",
            "--version",
            "--robot-type",
            "--rate-hz",
            "--channel",
            "--contract",
            "IMPORT_INCOMPLETE",
        )
    )


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"fps": 50}, "50 Hz"),
        ({"names": ("gripper.pos", "shoulder.pos")}, "another order"),
        ({"names": {"motors": ["main_shoulder", "main_gripper"]}}, "main_shoulder, main_gripper"),
    ],
)
def test_what_contradicts_the_data_set_is_refused_by_name(
    tmp_path: Path, imported: Any, data: dict[str, Any], text: str
) -> None:
    training_run(tmp_path / "run", dataset=write_dataset(tmp_path / "data", **data))
    refused = imported(tmp_path / "run", status=1)
    assert refused["code"] == "IMPORT_MISMATCH" and text in refused["reason"]


def test_a_name_that_no_folder_can_have_is_no_data_set(tmp_path: Path, imported: Any) -> None:
    training_run(tmp_path / "run", dataset="me/" + "x" * 5000)
    assert imported(tmp_path / "run")["dataset"] is None
    assert imported(tmp_path / "run", "--dataset", "x" * 5000, status=1)["code"] == "IMPORT_DATASET"


def test_a_data_set_is_found_where_lerobot_keeps_it(
    tmp_path: Path, imported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "home"))
    training_run(tmp_path / "run")
    write_dataset(tmp_path / "home" / "me" / "pick", fps=25)
    assert imported(tmp_path / "run", status=1)["code"] == "IMPORT_MISMATCH"
    write_dataset(tmp_path / "home" / "me" / "other")
    assert "so101_follower" in imported(tmp_path / "run", "--dataset", "me/other")["dataset"]


@pytest.mark.parametrize("info", [{}, {"fps": "fast", "features": {"action": {}}}, {"fps": 30, "features": {}}])
def test_a_data_set_that_is_none_is_refused(tmp_path: Path, imported: Any, info: dict[str, Any]) -> None:
    training_run(tmp_path / "run")
    assert imported(tmp_path / "run", "--dataset", tmp_path / "none", status=1)["code"] == "IMPORT_DATASET"
    (tmp_path / "data" / "meta").mkdir(parents=True)
    write_json(tmp_path / "data" / "meta" / "info.json", info)
    assert imported(tmp_path / "run", "--dataset", tmp_path / "data", status=1)["code"] == "IMPORT_DATASET"


# -- what is changed, and said -------------------------------------------------------------------------------------


def test_a_policy_that_executes_its_whole_chunk_executes_half_of_it(tmp_path: Path, imported: Any) -> None:
    training_run(tmp_path / "run")
    report = imported(tmp_path / "run")
    assert report["chunk"].startswith("100 actions, 50 executed")
    assert "50 of 100 actions" in report["notes"][0]


@pytest.mark.parametrize(("checkpoint", "options", "execute"), [(100, ["--execute", "30"], 30), (40, [], 40)])
def test_what_was_said_of_the_executed_actions_is_kept(
    tmp_path: Path, imported: Any, checkpoint: int, options: list[str], execute: int
) -> None:
    training_run(tmp_path / "run", execute=checkpoint)
    assert f"{execute} executed" in imported(tmp_path / "run", *options)["chunk"]


def test_more_executed_actions_than_a_chunk_has_are_refused(tmp_path: Path, imported: Any) -> None:
    training_run(tmp_path / "run")
    refused = imported(tmp_path / "run", "--execute", "101", status=1)
    assert refused["code"] == "CONFIG_FIELD_INVALID" and "--execute 101: must be 1 to 100" in refused["reason"]


def test_temporal_ensembling_is_switched_off_and_said(tmp_path: Path, imported: Any) -> None:
    """LeRobot refuses it with more than one executed action."""
    training_run(tmp_path / "run", execute=1, temporal_ensemble_coeff=0.01)
    report = imported(tmp_path / "run")
    assert "50 executed" in report["chunk"]
    assert any("temporal_ensemble_coeff 0.01 is not used" in note for note in report["notes"])
    assert open_bundle(tmp_path / "pick" / "1.0.0").config.raw["temporal_ensemble_coeff"] is None


def test_what_comes_from_elsewhere_or_is_not_used_is_noted(tmp_path: Path, imported: Any) -> None:
    training_run(
        tmp_path / "run",
        pretrained_backbone_weights="ResNet18_Weights.IMAGENET1K_V1",
        vlm_model_name="some-org/vlm",
        rtc_config={"enabled": True},
    )
    notes = " ".join(imported(tmp_path / "run")["notes"])
    assert all(text in notes for text in ("ResNet18_Weights.IMAGENET1K_V1", "some-org/vlm", "rtc_config"))


def test_a_language_model_that_lies_in_the_checkpoint_is_not_missed(tmp_path: Path, imported: Any) -> None:
    folder = training_run(tmp_path / "run", vlm_model_name="some-org/vlm")
    (folder / "some-org" / "vlm").mkdir(parents=True)
    (folder / "some-org" / "vlm" / "tokenizer.json").write_text("{}")
    assert not any("some-org/vlm" in note for note in imported(tmp_path / "run")["notes"])


def test_the_lineage_says_where_it_comes_from_and_no_path_of_the_training_machine_is_in_the_bundle(
    tmp_path: Path, imported: Any
) -> None:
    data = write_dataset(tmp_path / "data")
    training_run(tmp_path / "run", dataset=data, pretrained_path="/home/me/base/pretrained_model")
    report = imported(tmp_path / "run", "--lineage", '{"ticket": 7}')
    assert report["lineage"] == {
        "dataset": "me/pick", "policy": "act", "step": 60, "steps": 1000, "seed": 1, "ticket": 7,
    }  # fmt: skip
    assert "train_config.json" in report["left_out"]
    for path in (tmp_path / "pick" / "1.0.0").rglob("*.json"):
        assert "/home/me" not in path.read_text() and str(tmp_path) not in path.read_text(), path


def test_a_policy_that_needs_a_file_of_the_training_machine_is_refused(tmp_path: Path, imported: Any) -> None:
    training_run(tmp_path / "run", vlm_model_name="/home/me/models/smolvlm")
    refused = imported(tmp_path / "run", status=1)
    assert refused["code"] == "IMPORT_MACHINE_PATH" and "vlm_model_name" in refused["reason"]


def test_a_training_step_as_version_is_refused_with_a_hint(tmp_path: Path, imported: Any) -> None:
    training_run(tmp_path / "run")
    refused = imported(tmp_path / "run", "--name", "pick", "--version", "000060", status=1)
    assert refused["code"] == "VERSION_INVALID" and "lineage" in refused["reason"]


# -- which LeRobot reads it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "training", "options", "release"),
    [
        ({"use_peft": ...}, {}, [], ">=0.4,<0.5"),
        ({}, {}, [], ">=0.4.3,<0.5"),
        ({}, {"cudnn_deterministic": False}, [], ">=0.5,<0.6"),
        ({"pretrained_revision": None}, {"cudnn_deterministic": False}, [], ">=0.6,<0.7"),
        ({}, {}, ["--lerobot-version", "0.5.1"], ">=0.5,<0.6"),
    ],
)
def test_the_release_that_reads_it_is_guessed_or_said(
    tmp_path: Path, imported: Any, config: dict[str, Any], training: dict[str, Any], options: list[str], release: str
) -> None:
    folder = training_run(tmp_path / "run", **config)
    document = json.loads((folder / "train_config.json").read_text())
    write_json(folder / "train_config.json", {**document, **training})
    report = imported(tmp_path / "run", *options)
    assert report["requires"] == {"lerobot": release}
    assert any("guessed" in note for note in report["notes"]) == (not options)
    assert verify_bundle(tmp_path / "pick" / "1.0.0").manifest.requires == {"lerobot": release}


def test_a_policy_that_is_not_lerobots_requires_nothing(tmp_path: Path, imported: Any) -> None:
    write_folder(tmp_path / "src", policy_type="mine")
    write_json(tmp_path / "src" / "stats.json", {key: plain_stats(2) for key in ("observation.state", "action")})
    assert imported(tmp_path / "src")["requires"] == {}
