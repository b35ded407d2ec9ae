# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet adapters merge``, and a robot's worker with what it made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.adapters import deltas_of, error, make_adapter, make_base, weighted
from support.fleet_app import FleetApp

from vla_fleet.cli import common
from vla_fleet.cli.main import main


def shell(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["vla-fleet", *arguments])
    monkeypatch.setattr(common.out, "_width", 200)
    monkeypatch.setattr(common.err, "_width", 200)
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command_shows_what_each_adapter_counts_and_how_exact_the_merge_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(tmp_path / "base")
    folders = [make_adapter(tmp_path / f"robot{i}" / "lora", base, i) for i in range(5)]
    plain = make_adapter(tmp_path / "laptop", None, 9)
    arguments = [*map(str, [*folders, plain]), "--base", str(tmp_path / "base")]
    assert (
        shell(monkeypatch, "adapters", "merge", *arguments, "--out", str(tmp_path / "out"), "--weights", "3,1,1,1,1,1")
        == 0
    )
    shown = capsys.readouterr()
    assert "robot0/lora" in shown.out and "0.375" in shown.out and "pick_place 1.0.6" in shown.out
    assert "relative error against the weighted sum" in shown.out and "laptop" in shown.err
    wanted = weighted([deltas_of(folder) for folder in [*folders, plain]], [3 / 8, *[1 / 8] * 5])
    assert error(deltas_of(tmp_path / "out"), wanted) < 1e-6

    krum = ("--out", str(tmp_path / "krum"), "--method", "krum", "--rank", "2", "--clip", "1.5", "--json")
    assert shell(monkeypatch, "adapters", "merge", *arguments, *krum) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["certificate"]["tail_energy"] > 0 and made["version"] == "1.0.6"
    assert sum(client["weight"] == 0 for client in made["certificate"]["clients"]) == 1

    for more, status, said in (
        (("--method", "average"), 2, "geometric-median"),
        (("--weights", "1;2"), 2, "commas"),
        (("--weights", "1,2"), 1, "MERGE_SETTINGS"),
    ):
        assert shell(monkeypatch, "adapters", "merge", *arguments, "--out", str(tmp_path / "never"), *more) == status
        assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "never").exists()


def test_adapters_count_by_the_examples_that_their_manifests_name_and_the_merge_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(tmp_path / "base")
    trained = [{"lineage": {"training": {"examples": count}}} for count in (300, 100)]
    folders = [make_adapter(tmp_path / f"{i}", base, i, policy=policy) for i, policy in enumerate(trained)]
    arguments = [*map(str, folders), "--base", str(tmp_path / "base"), "--weights", "examples", "--out"]
    assert shell(monkeypatch, "adapters", "merge", *arguments, str(tmp_path / "out")) == 0
    wanted = weighted([deltas_of(folder) for folder in folders], [0.75, 0.25])
    assert error(deltas_of(tmp_path / "out"), wanted) < 1e-6
    silent = make_adapter(tmp_path / "2", base, 2)
    assert shell(monkeypatch, "adapters", "merge", str(silent), *arguments, str(tmp_path / "never")) == 1
    capsys.readouterr()
    with FleetApp(tmp_path / "fleet", heartbeat_s=60.0) as app:
        monkeypatch.setenv("VLA_FLEET_SERVER", app.url)
        monkeypatch.setenv("VLA_FLEET_KEY", app.key)
        assert shell(monkeypatch, "publish", str(tmp_path / "base")) == 0
        assert shell(monkeypatch, "publish", str(tmp_path / "out"), "--alias", "candidate") == 0
    assert "pick_place 1.0.3 is published" in capsys.readouterr().out


def test_a_robot_runs_a_merged_bundle_and_acts_as_the_weighted_sum(tmp_path: Path) -> None:
    from support.scripted import scripted_bundle
    from support.worker_robot import WorkerRobot

    from vla_learning.adapters.merging import Settings, merge
    from vla_learning.adapters.reading import open_base, open_clients
    from vla_learning.adapters.writing import write_merge
    from vla_policy_node.worker.inference import WARM_UP_INFERENCES

    mix = {"mix.weight": np.zeros((2, 2), np.float32)}
    base = scripted_bundle(tmp_path / "1.0.0", horizon=16, amplitude=0.0, offset=(0.1, 0.2), more_tensors=mix)
    policy = {"calls_before_ready": WARM_UP_INFERENCES, "script_rate_hz": 50.0, "ignored_tensors": ["mix.weight"]}
    rng = np.random.default_rng(4)
    folders, sums = [], []
    for i in range(2):
        a, b = (rng.normal(scale=0.1, size=shape).astype(np.float32) for shape in ((1, 2), (2, 1)))
        names = "base_model.model.mix.lora_A.weight", "base_model.model.mix.lora_B.weight"
        factors = dict(zip(names, (a, b), strict=True))
        folders.append(make_adapter(tmp_path / f"lora{i}", base, i, tensors=factors, policy=policy, r=1, lora_alpha=3))
        sums.append(3.0 * (b.astype(np.float64) @ a).sum(axis=1))
    opened = open_base(tmp_path / "1.0.0")
    merged = merge(open_clients(folders, opened), Settings(weights=(1, 3)))
    write_merge(merged, opened, tmp_path / "1.0.9", "1.0.9")
    with WorkerRobot(spare=False) as robot:
        acts = robot.chunk(robot.pool.prepare(tmp_path / "1.0.9"))["actions"][0]
    assert np.allclose(acts, np.array([0.1, 0.2]) + 0.25 * sums[0] + 0.75 * sums[1], atol=1e-6)
