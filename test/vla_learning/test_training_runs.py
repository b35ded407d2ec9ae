# SPDX-License-Identifier: Apache-2.0
"""From recorded corrections to a published version: what goes better passes the gate, what has forgotten old tasks does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.bundles import make_bundle
from support.fleet import enrolled
from support.fleet_app import FleetApp
from support.shell import Shell
from support.sim_episodes import upload, write_recording
from support.tiny_vla_bundles import make

from vla_checkpoint import BaseRef, load_manifest, verify_bundle
from vla_fleet.cli.main import main
from vla_learning.gate import gate
from vla_learning.running import load_policy
from vla_learning.simulate.newcomer import NEW_COLOUR, OLD_COLOURS, make_newcomer, task_for
from vla_learning.simulate.operator import Recording, run
from vla_sim.arm import Arm
from vla_sim.bundle import SHIPPED_BUNDLE

pytestmark = pytest.mark.long

GATE = ["--gate", "episodes_old=24", "--gate", "episodes_new=16", "--gate", "margin_old=0.35"]
QUICK = [*GATE, "--set", "steps=120", "--set", "batch=16", "--set", "learning_rate=2e-4"]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_newcomer(tmp_path_factory.mktemp("models") / "reach_block" / "1.0.0", seed=0)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, newcomer: Path) -> Iterator[FleetApp]:
    """A server with a published policy, and what a robot recorded with it: old tasks done well, the new colour corrected."""
    policy, arm, rng = load_policy(verify_bundle(newcomer)), Arm(), np.random.default_rng(0)

    def record(colour: str) -> Recording:
        return run(arm, policy, task_for(colour, rng), patience_s=1.5 if colour == NEW_COLOUR else 4.0, every=5)

    recordings = [record(OLD_COLOURS[i % 3]) for i in range(45)] + [record(NEW_COLOUR) for _ in range(10)]
    folder = tmp_path_factory.mktemp("fleet")
    with FleetApp(folder / "server", heartbeat_s=60.0) as app, app.client() as client:
        client.publish(newcomer, alias="champion")
        token = enrolled(client, "arm")
        for number, recording in enumerate(recordings):
            version = "1.0.0" if recording.episode.colour == NEW_COLOUR else "0.9.0"
            write_recording(folder / "episode.mcap", number, recording, version)
            upload(app.url, token, folder / "episode.mcap")
        yield app


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory, fleet: FleetApp) -> Path:
    """The data set of the week in which the new colour came."""
    folder = tmp_path_factory.mktemp("week")
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["--new-version", "1.0.0", "--episodes", str(folder / "cache"), "--key", fleet.key]
        patch.setattr("sys.argv", ["vla-fleet", "dataset", "build", "--out", str(folder / "set"), *arguments])
        patch.setenv("VLA_FLEET_SERVER", fleet.url)
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    return folder / "set"


@pytest.fixture
def shell(fleet: FleetApp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(fleet, capsys, monkeypatch)


def test_corrections_become_a_published_version_that_does_the_new_task(
    week: Path, fleet: FleetApp, shell: Shell, tmp_path: Path
) -> None:
    arguments = ["train", str(week), "--base", "reach_block@champion", "--runs", str(tmp_path / "runs"), *QUICK]
    run = shell.json(*arguments, "--alias", "candidate")
    _, new = run["gate"]["checks"][:2]
    assert new["figures"]["candidate"] >= new["figures"]["base"] + 4
    with fleet.client() as client:
        version = client.models("reach_block")[0]
        bundle = verify_bundle(client.download("reach_block@candidate", tmp_path / "downloads"))
    assert version["version"] == "1.1.0" and run["published"]["version"] == "1.1.0"
    lineage = bundle.manifest.lineage
    assert lineage["parent"] == run["base"]["digest"] and lineage["data_set"] == f"sha256:{run['dataset']['digest']}"
    assert lineage["gate"]["passed"] and lineage["training_run"] == run["id"] and bundle.has_golden
    # the same command again trains nothing and publishes nothing
    assert shell.json(*arguments, "--alias", "candidate") == run


def test_a_candidate_that_has_forgotten_is_stopped_and_not_published(
    week: Path, fleet: FleetApp, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learned much too fast: it goes nowhere any more. The gate plays in processes beside each other, as with more episodes."""
    monkeypatch.setattr(gate, "_AT_ONCE", 4)
    monkeypatch.setattr(gate, "cores", lambda: 2)
    few = ["--gate", "episodes_old=12", "--gate", "episodes_new=6"]
    wild = [
        *few,
        "--set",
        "steps=6",
        "--set",
        "batch=8",
        "--set",
        "learning_rate=3e-2",
        "--runs",
        str(tmp_path / "runs"),
    ]
    with fleet.client() as client:
        before = client.models("reach_block")
        said = shell.run("train", str(week), "--base", "reach_block@1.0.0", *wild, "--publish", status=1).stderr
        assert client.models("reach_block") == before
    assert "the gate stops it: GATE_FORGETS, GATE_NO_IMPROVEMENT" in said
    assert "old tasks in the simulator (red, green, blue)" in said and "of 12 before" in said


def test_a_data_set_of_another_robot_and_an_adapter_as_base_are_refused(
    shell: Shell, week: Path, tmp_path: Path
) -> None:
    make(tmp_path / "tiny", 0.0)
    runs = ["--runs", str(tmp_path / "runs")]
    assert (
        "TRAINING_DATA_SET" in shell.run("train", str(week), "--base", str(tmp_path / "tiny"), *runs, status=1).stderr
    )
    base = load_manifest(SHIPPED_BUNDLE)
    make_bundle(tmp_path / "lora", base=BaseRef(base.name, base.version, base.digest))
    assert "TRAINING_BASE" in shell.run("train", str(week), "--base", str(tmp_path / "lora"), *runs, status=1).stderr
    assert (
        "DATASET_UNREADABLE"
        in shell.run("train", str(tmp_path), "--base", str(tmp_path / "tiny"), *runs, status=1).stderr
    )
    for wrong in (("--set", "method=all"), ("--set", "lora_rank=0"), ("--gate", "margin_old=1.5")):
        said = shell.run("train", str(week), "--base", "reach_block@1.0.0", *wrong, *runs, status=1).stderr
        assert "TRAINING_SETTING" in said and wrong[1].partition("=")[0].removeprefix("lora_") in said
    shell.run("train", str(week), "--base", "reach_block@1.0.0", "--set", "step=3", *runs, status=2)
