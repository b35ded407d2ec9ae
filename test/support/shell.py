# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet`` as a person types it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from support.fleet_app import FleetApp
from vla_fleet.cli import common
from vla_fleet.cli.main import main


class Shell:
    """Runs ``vla-fleet`` as a person would, in this process: a process of its own for each takes seconds."""

    def __init__(self, app: FleetApp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLA_FLEET_SERVER", app.url)
        monkeypatch.setenv("VLA_FLEET_KEY", app.key)
        monkeypatch.setattr(common.out, "_width", 200)
        monkeypatch.setattr(common.err, "_width", 200)
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def run(self, *arguments: str, status: int = 0) -> SimpleNamespace:
        self._monkeypatch.setattr("sys.argv", ["vla-fleet", *arguments])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        said = self._capsys.readouterr()
        assert (end.value.code or 0) == status, said
        return SimpleNamespace(stdout=said.out, stderr=said.err)

    def json(self, *arguments: str, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", status=status).stdout)
