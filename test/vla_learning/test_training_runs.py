# SPDX-License-Identifier: Apache-2.0
"""From recorded corrections to a published version: what goes better passes the gate, what has forgotten old tasks does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.fleet_app import FleetApp
from support.sim_episodes import data_set

from vla_checkpoint import verify_bundle
from vla_fleet.cli.main import main
from vla_fleet.client import Client
from vla_learning.running import load_policy
from vla_learning.simulate.newcomer import NEW_COLOUR, OLD_COLOURS, make_newcomer, task_for
from vla_learning.simulate.operator import Recording, run
from vla_sim.arm import Arm

GATE = ["--gate", "episodes_old=24", "--gate", "episodes_new=16", "--gate", "margin_old=0.35"]
QUICK = [*GATE, "--set", "steps=120", "--set", "batch=16", "--set", "learning_rate=2e-4"]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_newcomer(tmp_path_factory.mktemp("models") / "reach_block" / "1.0.0", seed=0)


@pytest.fixture(scope="module")
def recordings(newcomer: Path) -> tuple[list[Recording], list[Recording]]:
    """What the fleet did: old tasks well, and the new colour with an operator's help."""
    policy, arm, rng = load_policy(verify_bundle(newcomer)), Arm(), np.random.default_rng(0)

    def record(colour: str) -> Recording:
        return run(arm, policy, task_for(colour, rng), patience_s=4.0 if colour != NEW_COLOUR else 1.5, every=5)

    old = [record(OLD_COLOURS[i % 3]) for i in range(45)]
    new = [record(NEW_COLOUR) for _ in range(10)]
    return [r for r in old if r.success], [r for r in new if r.taken_over is not None]


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory, recordings: tuple[list[Recording], list[Recording]]) -> Path:
    """The data set of one week."""
    return data_set(tmp_path_factory.mktemp("week") / "d", *recordings)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, newcomer: Path) -> Iterator[FleetApp]:
    with FleetApp(tmp_path_factory.mktemp("fleet"), heartbeat_s=60.0) as app:
        with Client(app.url, app.key) as client:
            client.publish(newcomer, alias="champion")
        yield app


def vla_fleet(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["vla-fleet", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_corrections_become_a_published_version_that_does_the_new_task(
    week: Path, fleet: FleetApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLA_FLEET_SERVER", fleet.url)
    monkeypatch.setenv("VLA_FLEET_KEY", fleet.key)
    arguments = ["train", str(week), "--base", "reach_block@champion", "--runs", str(tmp_path / "runs"), *QUICK]
    assert vla_fleet(monkeypatch, *arguments, "--alias", "candidate", "--json") == 0, capsys.readouterr()
    run = json.loads(capsys.readouterr().out)
    _, new = run["gate"]["checks"][:2]
    assert new["figures"]["candidate"] > new["figures"]["base"] + 5
    with Client(fleet.url, fleet.key) as client:
        version = client.models("reach_block")[0]
        bundle = verify_bundle(client.download("reach_block@candidate", tmp_path / "downloads"))
    assert version["version"] == "1.1.0" and run["published"]["version"] == "1.1.0"
    lineage = bundle.manifest.lineage
    assert lineage["parent"] == run["base"]["digest"] and lineage["data_set"] == f"sha256:{run['dataset']['digest']}"
    assert lineage["gate"]["passed"] and lineage["training_run"] == run["id"] and bundle.has_golden
    # the same command again trains nothing and publishes nothing
    assert vla_fleet(monkeypatch, *arguments, "--alias", "candidate", "--json") == 0
    assert json.loads(capsys.readouterr().out) == run


def test_a_candidate_that_has_forgotten_is_stopped_and_not_published(
    week: Path, fleet: FleetApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Learned much too fast: it goes nowhere any more."""
    monkeypatch.setenv("VLA_FLEET_SERVER", fleet.url)
    monkeypatch.setenv("VLA_FLEET_KEY", fleet.key)
    with Client(fleet.url, fleet.key) as client:
        before = client.models("reach_block")
        wild = ["--set", "steps=6", "--set", "batch=8", "--set", "learning_rate=3e-2", "--runs", str(tmp_path / "runs")]
        assert vla_fleet(monkeypatch, "train", str(week), "--base", "reach_block@1.0.0", *GATE, *wild, "--publish") == 1
        assert client.models("reach_block") == before
    said = capsys.readouterr().err
    assert "the gate stops it: GATE_FORGETS, GATE_NO_IMPROVEMENT" in said
    assert "old tasks in the simulator (red, green, blue)" in said
