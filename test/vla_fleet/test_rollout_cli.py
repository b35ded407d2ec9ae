# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet rollout`` and its endpoints: what people see, what is refused, and who may do what."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.rollouts import HOUR_S, MODEL, RolloutFleet

from vla_evidence.log.replay import replay_file
from vla_fleet.client import Client
from vla_fleet.errors import MissingError, RoleError


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutFleet]:
    with RolloutFleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.add("arm_0", "arm_1", new=0.95)
        fleet.episodes(10)
        fleet.pass_time(HOUR_S)
        yield fleet


def command(fleet: RolloutFleet, *words: str) -> subprocess.CompletedProcess[str]:
    key = (fleet.folder / "data" / "admin.key").read_text().strip()
    line = [sys.executable, "-c", "from vla_fleet.cli.main import main; main()", "rollout", *words]
    return subprocess.run(
        [*line, "--server", fleet.url, "--key", key], capture_output=True, text=True, timeout=110, check=False
    )


def test_a_rollout_is_forecast_created_watched_decided_and_replayed_by_command(
    fleet: RolloutFleet, tmp_path: Path
) -> None:
    stages = ("--stage", "canary:20:24:10", "--stage", "wide:50:24:5")
    created = command(fleet, "create", MODEL, "--all", *stages, "--judge", "simple", "--yes")
    assert created.returncode == 0, created.stderr
    assert "2 robots; each episode is drawn" in created.stdout and "are rolled back" in created.stdout
    rollout = created.stdout.splitlines()[-1].partition(":")[0]
    fleet.until(rollout, "JUDGING")
    fleet.step(2)
    shown = command(fleet, "status", rollout)
    for text in ("JUDGING", "1 of 3: canary, 100% of robots, 20% of episodes, 24 h", "2 INSTALLED", "rollout.create"):
        assert text in shown.stdout, shown.stdout
    refused = command(fleet, "resume", rollout)
    assert refused.returncode == 1 and "ROLLOUT_STATE" in refused.stderr
    assert command(fleet, "approve", rollout).returncode == 2, "a decision needs a reason"
    approved = command(fleet, "approve", rollout, "--reason", "seen it work", "--json")
    assert json.loads(approved.stdout)["stage"] == 1
    fleet.until(rollout, "JUDGING")
    assert command(fleet, "abort", rollout, "--reason", "enough").returncode == 0
    fleet.until(rollout, "ROLLED_BACK")
    watched = command(fleet, "status", rollout, "--watch")
    assert watched.returncode == 1 and "enough" in watched.stdout, "it is not DONE"
    assert rollout in command(fleet, "list").stdout
    (tmp_path / "log.jsonl").write_text(command(fleet, "log", rollout).stdout)
    assert replay_file(tmp_path / "log.jsonl").verdicts >= 1
    assert "admin decides: advance (seen it work)" in command(fleet, "log", rollout, "--words").stdout


def test_nothing_begins_that_a_person_did_not_confirm(fleet: RolloutFleet) -> None:
    before = len(fleet.client.rollouts())
    assert command(fleet, "create", MODEL, "--all", "--judge", "simple").returncode == 1  # there is no answer on stdin
    assert command(fleet, "create", MODEL, "--yes").returncode == 2, "nobody said for which robots"
    assert len(fleet.client.rollouts()) == before


GOOD = {"name": "canary", "share": 0.5, "duration_s": 60.0}
FULL = {"name": "full", "share": 1.0}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": "nothing@1.0.0"}, "MODEL_NOT_FOUND"),
        ({"target": "group:nobody"}, "NO_ROBOTS"),
        ({"target": "everywhere"}, "TARGET_INVALID"),
        ({"stages": [GOOD]}, "STAGES_INVALID"),
        ({"stages": [FULL, FULL]}, "STAGES_INVALID"),
        ({"stages": [{**GOOD, "share": 0.5}, {**GOOD, "share": 0.2}, FULL]}, "STAGES_INVALID"),
        ({"stages": [GOOD, {**GOOD, "share": 0.6, "probability": 1.0}, FULL]}, "STAGES_INVALID"),
        ({"stages": [{**GOOD, "share": 1.5}, FULL]}, "INPUT_INVALID"),
        ({"stages": [{**GOOD, "margin": -0.1}, FULL]}, "INPUT_INVALID"),
        ({"stages": [{**GOOD, "duration": 60}, FULL]}, "INPUT_INVALID"),
        ({"windows": ["noon"]}, "WINDOW_INVALID"),
        ({"time_zone": "Middle/Earth"}, "TIME_ZONE_UNKNOWN"),
        ({"judge": "mine"}, "INPUT_INVALID"),
        ({"max_concurrent": 0}, "INPUT_INVALID"),
        ({"deadline_s": 0}, "INPUT_INVALID"),
        ({"stage": []}, "INPUT_INVALID"),
    ],
)
def test_what_no_rollout_can_do_is_refused_with_a_code(fleet: RolloutFleet, change: dict[str, Any], code: str) -> None:
    headers = {"Authorization": f"Bearer {(fleet.folder / 'data' / 'admin.key').read_text().strip()}"}
    before = len(fleet.client.rollouts())
    answer = httpx.post(f"{fleet.url}/v1/rollouts", json={"model": MODEL, **change}, headers=headers, timeout=40.0)
    assert 400 <= answer.status_code < 500 and answer.json()["error_code"] == code, answer.text
    assert len(fleet.client.rollouts()) == before


def test_only_operators_steer_and_everybody_may_look(fleet: RolloutFleet) -> None:
    for role in ("viewer", "publisher"):
        with Client(fleet.url, fleet.client.make_key(f"a-{role}", role)) as person:
            assert isinstance(person.rollouts(), list)
            for action in ("pause", "resume", "approve", "abort"):
                with pytest.raises(RoleError):
                    person.steer_rollout("r-1", action, "because")
            with pytest.raises(RoleError):
                person.create_rollout(MODEL)
    for ask in (fleet.client.rollout, fleet.client.rollout_log):
        with pytest.raises(MissingError, match="ROLLOUT_NOT_FOUND"):
            ask("r-nothing")
