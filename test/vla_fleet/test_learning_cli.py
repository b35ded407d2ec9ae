# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet episodes`` and ``vla-fleet dataset``: from what robots uploaded to a data set, as a person types it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.episodes import make_episode
from support.fleet import TOP, enrolled
from support.fleet_app import FleetApp
from support.shell import Shell

from vla_learning.datasets.reading import open_dataset
from vla_learning.episodes.reading import read_episode

Record = Callable[..., str]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[FleetApp]:
    with FleetApp(tmp_path / "fleet", heartbeat_s=60.0) as app:
        yield app


@pytest.fixture
def shell(app: FleetApp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(app, capsys, monkeypatch)


@pytest.fixture
def record(app: FleetApp, tmp_path: Path) -> Record:
    """Let a robot upload an episode; return its SHA-256."""
    tokens: dict[str, str] = {}

    def upload(number: int, robot: str = "arm", **options: Any) -> str:
        with app.client() as client:
            token = tokens.get(robot) or tokens.setdefault(robot, enrolled(client, robot))
        path = tmp_path / "made" / f"{number}.mcap"
        make_episode(path, number, **options)
        data = path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        url, headers = f"{app.url}/v1/robot/episodes/{sha256}", {"Authorization": f"Bearer {token}"}
        query = {"offset": 0, "total_bytes": len(data)}
        assert httpx.put(url, params=query, headers=headers, content=data, timeout=40.0).json()["complete"]
        return sha256

    return upload


def test_an_episode_is_listed_shown_and_fetched(shell: Shell, record: Record, tmp_path: Path) -> None:
    sha256 = record(1, corrected=3, success=False)
    record(2, version="1.1.0")
    listed = shell.run("episodes", "list").stdout
    assert listed.index("1.1.0") < listed.index(sha256[:12]), "the newest first"
    assert "1.1.0" not in shell.run("episodes", "list", "--corrected", "--outcome", "failure").stdout
    shown = shell.run("episodes", "show", sha256[:12]).stdout
    assert "failure" in shown and "pick the red block" in shown
    said = shell.run("episodes", "get", sha256[:12], str(tmp_path / "run.mcap")).stdout
    assert "12 steps" in said and read_episode(tmp_path / "run.mcap").corrections == 3
    assert "OUTPUT_NOT_WRITTEN" in shell.run("episodes", "get", sha256, str(tmp_path / "run.mcap"), status=1).stderr
    assert "EPISODE_NOT_FOUND" in shell.run("episodes", "show", "0" * 8, status=1).stderr


def test_each_data_set_takes_as_new_what_came_after_the_one_before(
    shell: Shell, record: Record, tmp_path: Path
) -> None:
    cache = ("--episodes", str(tmp_path / "cache"))
    record(1, success=True)
    record(2, corrected=4, success=False)
    first = shell.run("dataset", "build", "--out", str(tmp_path / "1"), *cache).stdout
    assert "2 episodes, 24 frames" in first and "the first data set" in first and "being forgotten" in first
    assert "4 frames, 16.7% of the new ones" in first

    nothing = shell.run("dataset", "build", "--out", str(tmp_path / "2"), *cache, status=1).stderr
    assert "DATASET_NOTHING_NEW" in nothing and "after data set 1" in nothing
    record(3, corrected=2, success=True)
    record(4, success=False)
    record(5, policy="", version="", success=True)  # the robot worked before it had a policy
    second = shell.json("dataset", "build", "--out", str(tmp_path / "2"), *cache)
    assert [(e["part"], e["episode_id"]) for e in second["episodes"]] == [
        ("replay", "e-1"),
        ("replay", "e-2"),
        ("new", "e-3"),
    ]
    assert second["mix"]["replay_share"] == 0.7 and second["left_out"] == {"not a success, and not corrected": 1}
    assert second["of_no_policy"] == 1
    assert second["number"] == 2 and open_dataset(tmp_path / "2").frames == 36

    # the same episodes, said in another way, and without a cache
    told = shell.run("dataset", "build", "--out", str(tmp_path / "5"), "--since", "2026-01-01", *cache).stdout
    assert "left out     1 episode: recorded before the robot had a policy" in told
    again = ("--new-version", "1.0.0", "--episodes", str(tmp_path / "other"))
    third = shell.json("dataset", "build", "--out", str(tmp_path / "3"), *again)
    assert {e["part"] for e in third["episodes"]} == {"new"} and third["new"] == "done by version 1.0.0"
    again = ("--out", str(tmp_path / "4"), "--episodes", str(tmp_path / "fetched"))
    said = shell.run("dataset", "rebuild", str(tmp_path / "2" / "meta" / "vla_ota.json"), *again).stdout
    assert "3 episodes, 36 frames" in said
    for path in (tmp_path / "2").rglob("*.*"):
        assert (tmp_path / "4" / path.relative_to(tmp_path / "2")).read_bytes() == path.read_bytes()
    assert "DATASET_LINEAGE" in shell.run("dataset", "rebuild", str(tmp_path), *again, status=1).stderr
    assert "data set" in shell.run("dataset", "list").stdout
    assert [row["frames"] for row in shell.json("dataset", "list")] == [36, 36, 36, 24]


def test_bad_input_is_refused_by_name_and_loses_no_episode(shell: Shell, record: Record, tmp_path: Path) -> None:
    build = ("dataset", "build", "--out", str(tmp_path / "d"), "--episodes", str(tmp_path / "cache"))
    assert "DATASET_NO_EPISODES" in shell.run(*build, status=1).stderr
    record(1)
    assert "DATASET_NO_CORRECTIONS" in shell.run(*build, status=1).stderr
    record(2, "leg", corrected=3, rate_hz=20.0)
    mixed = shell.json(*build, status=1)
    assert mixed["error_code"] == "DATASET_MIXED"
    record(3, policy="place", corrected=3)
    assert "--policy" in shell.run(*build, status=1).stderr
    assert "DATASET_SETTING" in shell.run(*build, "--policy", "pick", "--replay-share", "1", status=1).stderr
    shell.run(*build, "--since", "2026-01-01", "--new-version", "1.0.0", status=2)
    assert not (tmp_path / "d").exists() and len(shell.json("episodes", "list")) == 3
    shell.run(*build, "--policy", "pick", "--robot", "leg")
    interface = shell.json("episodes", "list", "--robot", "arm")[0]["interface"]
    other = ("--policy", "pick", "--interface", interface, "--allow-no-corrections", "--out", str(tmp_path / "arm"))
    first = shell.run(*build, *other).stdout
    assert "the first data set" in first, "what another robot's data set took does not count"


def test_a_data_set_that_may_not_be_recorded_says_so(
    app: FleetApp, shell: Shell, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(1, corrected=2)
    with app.client() as client:
        monkeypatch.setenv("VLA_FLEET_KEY", client.make_key("eve", "viewer"))
    out = ("--out", str(tmp_path / "d"), "--episodes", str(tmp_path / "cache"))
    said = shell.run("dataset", "build", *out, status=1).stderr
    assert "ROLE_REQUIRED" in said and "is built, but not recorded" in said
    assert open_dataset(tmp_path / "d").frames == 12


def test_a_server_and_its_command_line_start_without_what_data_sets_need(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('pyarrow', 'ray', 'pandas', 'mcap', 'PIL'): sys.modules[name] = None\n"
        "import vla_fleet.cli.main, vla_fleet.server.run\n"
        "sys.argv = ['vla-fleet', 'dataset', 'build', '--out', 'd']\n"
        "vla_fleet.cli.main.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TOP, timeout=60, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1 and "LEARNING_MISSING" in done.stderr


def test_training_is_due_after_enough_corrections_or_after_days_with_one(
    shell: Shell, record: Record, tmp_path: Path
) -> None:
    assert "not yet due: 0 corrected episodes" in shell.run("due", "pick", status=3).stdout
    record(1, corrected=3)
    record(2)
    assert not shell.json("due", "pick", "--corrections", "2", status=3)["due"]
    assert shell.json("due", "pick", "--corrections", "2", "--every-days", "0")["corrections"] == 1
    record(3, corrected=1, success=False)
    assert "due: 2 corrected episodes" in shell.run("due", "pick", "--corrections", "2").stdout
    shell.run("dataset", "build", "--out", str(tmp_path / "1"), "--episodes", str(tmp_path / "cache"))
    assert not shell.json("due", "pick", "--corrections", "1", "--every-days", "0", status=3)["due"]
