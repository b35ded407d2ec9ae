# SPDX-License-Identifier: Apache-2.0
"""The command line says what it found, and its exit code says whether that is good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.bundles import make_bundle, plain_golden, write_folder

from vla_checkpoint import load_manifest, verify_bundle
from vla_checkpoint.cli import main

IDENTITY = [
    "--name", "pick_place", "--version", "1.0.0", "--robot-type", "sim_arm", "--rate-hz", "50",
    "--channel", "j1:rad:absolute", "--channel", "j2:rad:absolute",
]  # fmt: skip


def test_runs_as_a_module(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "b")
    command = [sys.executable, "-m", "vla_checkpoint", "verify", str(tmp_path / "b"), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert report["digest"] == manifest.digest


@pytest.mark.parametrize(("folder", "status"), [("b", 0), ("none", 1)])
def test_a_reader_that_leaves_early_changes_nothing(tmp_path: Path, folder: str, status: int) -> None:
    make_bundle(tmp_path / "b")
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does, once it has seen enough
    command = [sys.executable, "-m", "vla_checkpoint", "verify", str(tmp_path / folder), "--json"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=110, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (status, "")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_people_can_read_what_a_bundle_is(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    manifest = make_bundle(tmp_path / "b", golden=plain_golden(), rate_hz=20.0)
    assert main([command, str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    for text in (
        "pick_place",
        "1.0.0",
        manifest.digest,
        "j2 [rad] absolute",
        "20.0",
        "16 actions, 8 executed",
        "F32: 2",
    ):
        assert text in out
    assert main([command, str(tmp_path / "b"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["parameters"], report["tensors"], report["golden"]) == (18, 2, True)


def test_what_a_bundle_says_of_itself_cannot_steer_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(tmp_path / "b", lineage={"run": "a\x1b[2J\nname: other"})
    assert main(["inspect", str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert sum(line.startswith("name:") for line in out.splitlines()) == 1


def test_an_action_that_never_moves_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "b")
    stats = json.loads((tmp_path / "b" / "stats.json").read_text())
    stats["action"]["std"] = [1.0, 0.0]
    (tmp_path / "b" / "stats.json").write_text(json.dumps(stats))
    assert main(["manifest", *IDENTITY, str(tmp_path / "b")]) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "b"), "--json"]) == 0
    note, _ = json.loads(capsys.readouterr().out)["notes"]
    assert "j2" in note


def test_a_rejection_is_one_line_with_code_file_and_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(tmp_path / "b")
    content = bytearray((tmp_path / "b" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "b" / "model.safetensors").write_bytes(content)
    assert main(["inspect", str(tmp_path / "b")]) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "b")]) == 1
    captured = capsys.readouterr()
    code, file, reason = captured.err.strip().split(": ", 2)
    assert (code, Path(file).name, captured.out) == ("DIGEST_FILE", "model.safetensors", "")
    assert "\n" not in reason
    assert main(["verify", str(tmp_path / "b"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["code"], Path(report["path"]).name) == (False, "DIGEST_FILE", "model.safetensors")


def test_verify_holds_the_expected_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make_bundle(tmp_path / "b")
    assert main(["verify", str(tmp_path / "b"), "--digest", manifest.digest]) == 0
    assert main(["verify", str(tmp_path / "b"), "--digest", "0" * 64]) == 1
    assert capsys.readouterr().err.startswith("DIGEST_BUNDLE: ")


def test_manifest_writes_one_that_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "b")
    arguments = [
        "manifest",
        str(tmp_path / "b"),
        *IDENTITY,
        "--created",
        "2026-11-20T08:00:00Z",
        "--lineage",
        '{"run": "a"}',
        "--json",
    ]
    assert main(arguments) == 0
    digest = json.loads(capsys.readouterr().out)["digest"]
    bundle = verify_bundle(tmp_path / "b", expected_digest=digest)
    assert bundle.manifest.lineage == {"run": "a"}
    assert bundle.manifest.action.channels[1].name == "j2"
    assert main([*arguments, "--version", "one"]) == 1
    assert load_manifest(tmp_path / "b").digest == digest


def test_manifest_of_an_adapter_names_the_base_it_is_given(tmp_path: Path) -> None:
    base = make_bundle(tmp_path / "base")
    write_folder(tmp_path / "b", adapter=True)
    assert main(["manifest", str(tmp_path / "b"), *IDENTITY, "--base", str(tmp_path / "base")]) == 0
    named = verify_bundle(tmp_path / "b").manifest.base
    assert named is not None
    assert named.digest == base.digest


def test_import_makes_a_bundle_and_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "src", files={"optimizer.pt": b"x"})
    out = tmp_path / "out"
    assert main(["import", str(tmp_path / "src"), "--out", str(out), *IDENTITY]) == 0
    assert "optimizer.pt" in capsys.readouterr().out
    verify_bundle(out)
    assert main(["import", str(tmp_path / "src"), "--out", str(out), *IDENTITY]) == 1
    assert capsys.readouterr().err.startswith("IMPORT_DESTINATION: ")


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["explode"], ["inspect"], ["manifest", "x"], ["import", "x", *IDENTITY], ["manifest",
        "x", *IDENTITY, "--channel", "j1"],
        ["manifest", "x", *IDENTITY, "--channel", "j1:rad:delta"], ["manifest", "x", *IDENTITY, "--rate-hz", "fast"],
        ["manifest", "x", *IDENTITY, "--rate-hz", "-1"], ["manifest", "x", *IDENTITY, "--lineage", "[1]"],
    ],
)  # fmt: skip
def test_wrong_usage_exits_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: vla-checkpoint" in capsys.readouterr().err
