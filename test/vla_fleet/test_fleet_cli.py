# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, its exit status, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bundles import make_bundle
from support.fleet import TOP
from support.fleet_app import FleetApp
from support.shell import Shell
from typer.main import get_command
from websockets.sync.client import connect

from vla_fleet.cli.main import app as commands


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetApp]:
    with FleetApp(tmp_path_factory.mktemp("fleet"), heartbeat_s=60.0) as app:
        yield app


@pytest.fixture
def shell(app: FleetApp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(app, capsys, monkeypatch)


def test_from_a_bundle_to_garbage_every_command_says_what_it_did(shell: Shell, tmp_path: Path) -> None:
    make_bundle(tmp_path / "a", name="pick", version="1.0.0", seed=1)
    make_bundle(tmp_path / "b", name="pick", version="1.0.0", seed=2)
    assert shell.json("publish", str(tmp_path / "a"), "--alias", "champion")["version"] == "1.0.0"
    about = ["--parent", "pick@champion", "--method", "fine_tune", "--data-set", "night", "--metric", "success=0.9"]
    assert "pick 1.0.1 is published" in shell.run("publish", str(tmp_path / "b"), "--bump", "auto", *about).stdout
    origin = shell.run("models", "pick", "--lineage").stdout
    assert "pick@1.0.0" in origin and "night" in origin and "success" in origin
    shell.run("alias", "pick", "champion", "1.0.1", "--reason", "better at night")
    assert "better at night" in shell.run("alias", "pick", "champion").stdout
    assert shell.json("retire", "pick@1.0.0")["retired_s"]
    assert shell.json("gc", "--dry-run") == {"blobs": 0, "size_bytes": 0, "held": []}
    assert "0 files" in shell.run("gc").stdout
    key = shell.json("key", "ada", "viewer")["key"]
    assert shell.json("robots", status=0) == [] and "ada" in shell.run("keys", "--revoke", "ada").stdout
    assert "KEY_INVALID" in shell.run("robots", "--key", key, status=1).stderr
    assert [line["action"] for line in shell.json("log")][:2] == ["revoke_key", "key"]


def test_a_robot_is_shown_ordered_rotated_and_revoked(app: FleetApp, shell: Shell, tmp_path: Path) -> None:
    make_bundle(tmp_path / "a", name="place", version="1.0.0", seed=3)
    shell.run("publish", str(tmp_path / "a"))
    code = shell.json("enroll", "arm_1", "--tag", "left")["code"]
    with app.client() as client:
        token = client.enrol(code)[1]
    assert "arm_1" in shell.run("robots").stdout and "left" in shell.run("robots", "arm_1").stdout
    assert shell.json("robots", "arm_1")["group"] == "default"
    assert "WAITING" in shell.run("deploy", "place", "arm_1").stdout
    late = shell.run("deploy", "place", "arm_1", "--wait", "0.1", status=3)
    assert "the orders stand" in late.stderr
    assert shell.json("robots", "rotate", "arm_1") == ["arm_1"]
    assert "rotating" in shell.run("robots", "arm_1").stdout
    with connect(
        f"{app.url.replace('http', 'ws', 1)}/v1/robots/connect",
        additional_headers={"Authorization": f"Bearer {token}"},
        open_timeout=40,
    ) as line:
        line.send(json.dumps({"type": "hello", "protocols": [1], "outbox_id": "box"}))
        command = next(m for m in map(json.loads, line) if m["type"] == "command")
        refusal = {
            "type": "ack",
            "seq": 1,
            "time_s": 1.0,
            "command_id": command["id"],
            "state": "REFUSED",
            "error_code": "NO",
        }
        line.send(json.dumps(refusal))
        acts = {"type": "event", "seq": 2, "time_s": 1e9, "from_state": "", "to_state": "ACTIVE", "version": "1.0.0"}
        line.send(json.dumps({**acts, "digest": "d" * 64, "cause": "UPDATE", "update_id": command["id"]}))
        while json.loads(line.recv(40)) != {"type": "received", "seq": 2}:
            pass
    assert "ACTIVE" in shell.run("events", "--robot", "arm_1").stdout
    ran = shell.run("what-ran", "arm_1").stdout
    assert "1.0.0" in ran and "admin UPDATE" in ran and "2001-09-09 01:46:40" in ran
    assert "1.0.0" in shell.run("what-ran", "arm_1", "--at", "2001-09-09T02:00").stdout
    shell.run("what-ran", "arm_1", "--at", "2001-09-09T01:00", status=1)
    assert shell.json("what-ran", "arm_1", "--at", "2001-09-09T01:00", status=1) == []
    shell.run("robots", "revoke", "arm_1")
    assert "revoked" in shell.run("robots").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "hint"),
    [
        (["robots", "nobody"], 1, "ROBOT_NOT_FOUND"),
        (["deploy", "nothing@1.0.0", "arm"], 1, "MODEL_NOT_FOUND"),
        (["rollback"], 1, "NO_ROBOTS"),
        (["rollback", "--group", "nobody"], 1, "no robot is in group 'nobody'"),
        (["deploy"], 2, "deploy --help"),
        (["publish", "x", "--bump", "huge"], 2, "auto"),
        (["serve", "--data", "x", "--host", "0.0.0.0"], 2, "how robots reach"),
        (["models", "--lineage"], 2, "NAME --lineage"),
        (["what-ran", "arm", "--at", "noon"], 2, "write 14:02"),
        (["robots", "--key", ""], 1, "VLA_FLEET_KEY"),
        (["robots", "--server", "http://127.0.0.1:9"], 1, "vla-fleet serve"),
        (["robots", "--server", "http://[::1"], 1, "SERVER_UNREACHABLE"),
        (["robots", "--key", "schlüssel"], 1, "KEY_INVALID"),
        (["robots", ""], 1, "is empty"),
        (["rollout", "status", "../robots"], 1, "NOT_FOUND"),
        (["ab", "status", "nothing"], 1, "EXPERIMENT_NOT_FOUND"),
        (["alias", "nothing", "champion", "1.0.0"], 1, "MODEL_NOT_FOUND"),
        (["retire", "nothing@1.0.0"], 1, "MODEL_NOT_FOUND"),
        (["key", "ada", "king"], 1, "role"),
        (["keys", "--revoke", "nobody"], 1, "KEY_NOT_FOUND"),
        (["enroll", "a/b"], 1, "robot"),
    ],
)
def test_an_error_says_what_to_do_in_one_line_and_in_the_exit_status(
    shell: Shell, arguments: list[str], status: int, hint: str
) -> None:
    done = shell.run(*arguments, status=status)
    assert hint in done.stderr and "Traceback" not in done.stderr and not done.stdout
    if status == 1:
        assert done.stderr.count("\n") == 1
        assert shell.json(*arguments, status=1)["error_code"] in done.stderr


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(name: str) -> None:
    words = {"COMP_WORDS": "vla-fleet roll", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "vla-fleet roll"}
    action = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"} if name == "fish" else {}
    program = "import sys; sys.argv[0] = 'vla-fleet'; from vla_fleet.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], text=True, capture_output=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(TOP)} | words | action | {"_VLA_FLEET_COMPLETE": f"complete_{name}"},
    )  # fmt: skip
    assert "rollback" in done.stdout, done
    assert "enroll" not in done.stdout


def test_every_command_that_answers_can_answer_in_json() -> None:
    def leaves(command: Any) -> Iterator[Any]:
        yield from (
            (leaf for child in command.commands.values() for leaf in leaves(child))
            if hasattr(command, "commands")
            else [command]
        )

    silent = [c.name for c in leaves(get_command(commands)) if not any("--json" in p.opts for p in c.params)]
    assert silent == ["serve", "mirror", "migrate", "log", "log"], "an evidence log is JSON lines anyway"
