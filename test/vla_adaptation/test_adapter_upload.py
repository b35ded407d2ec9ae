# SPDX-License-Identifier: Apache-2.0
"""A proven adapter reaches the real fleet server whole and once, and is merged there with others."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.adaptive_robot import AdaptiveRobot, Trained
from support.fleet import enrolled
from support.fleet_app import FleetApp
from support.waits import wait_for
from typer.testing import CliRunner

from vla_adaptation.settings import AdaptationSettings
from vla_adaptation.upload import AdapterUploader, pack
from vla_checkpoint import load_manifest, verify_bundle
from vla_fleet.cli import adapters
from vla_fleet.cli.main import app as fleet_cli
from vla_recorder.episodes import upload
from vla_recorder.episodes.upload import Sender


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_LOOK_S", 0.05)
    monkeypatch.setattr(upload, "retry_after_s", lambda failures: 0.05)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[], FleetApp]]:
    """Start the server, or the one that comes after it."""
    running: list[FleetApp] = []

    def start() -> FleetApp:
        while running:
            running.pop().__exit__(None, None, None)
        app = FleetApp(tmp_path / "fleet", heartbeat_s=60.0)
        app.__enter__()
        running.append(app)
        return app

    yield start
    while running:
        running.pop().__exit__(None, None, None)


def token_of(app: FleetApp, robot: str) -> str:
    with app.client() as client:
        return enrolled(client, robot)


def listed(app: FleetApp) -> list[dict[str, Any]]:
    with app.client() as client:
        return client.adapters()


def put(app: FleetApp, token: str, data: bytes) -> httpx.Response:
    address = f"{app.url}/v1/robot/adapters/{hashlib.sha256(data).hexdigest()}"
    query, headers = {"offset": 0, "total_bytes": len(data)}, {"Authorization": f"Bearer {token}"}
    return httpx.put(address, params=query, headers=headers, content=data, timeout=60.0)


def test_an_adapter_is_uploaded_once_it_is_committed_and_no_byte_twice_whatever_is_restarted(
    adapted: AdaptiveRobot, started: Callable[[], FleetApp], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(upload, "_PIECE_BYTES", 20_000)
    sent: list[tuple[int, int]] = []
    ask = Sender.ask

    def counted(self: Sender, method: str, sha256: str, data: bytes | None = None, query: Any = None) -> Any:
        answer = ask(self, method, sha256, data, query)
        if data is not None:
            sent.append((query["offset"], len(data)))
            if len(sent) == 2:
                adapted.episode = "e-1"  # an episode begins
                adapted.hear()
        return answer

    monkeypatch.setattr(Sender, "ask", counted)
    app = started()
    (tmp_path / "token").write_text(token_of(app, "arm"))
    running = adapted.start()
    settings = AdaptationSettings(**adapted.settings, server=app.url.replace("http", "ws"), state_dir=str(tmp_path))
    adapted.until(lambda s: s.base_version)
    first = AdapterUploader(running, settings)
    first.start()
    wait_for(lambda: len(sent) == 2, "two upload")
    first.stop()
    assert not listed(app)
    app = started()
    settings = AdaptationSettings(**adapted.settings, server=app.url.replace("http", "ws"), state_dir=str(tmp_path))
    adapted.episode = ""
    adapted.hear()
    second = AdapterUploader(running, settings)
    second.start()
    status = adapted.until(lambda s: s.uploaded)
    second.stop()
    (row,) = listed(app)
    assert sum(size for _, size in sent) == row["size_bytes"], "no byte is sent twice"
    assert (row["robot"], row["version"], row["base_version"]) == ("arm", status.adapter_version, "1.0.0")
    assert row["examples"] == 20 * 14
    adapted.stop()
    assert adapted.start().to_upload() is None, "remembered over a restart"


def test_adapters_of_the_fleet_are_listed_fetched_and_merged_by_the_command_line(
    trained: Trained,
    tiny_base: Path,
    started: Callable[[], FleetApp],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapters, "_AT_ONCE", 1)  # it asks more than once
    bundle = next((trained.robot / "adaptation" / "offers" / "tiny").iterdir())
    pack(bundle, tmp_path / "a.tar")
    app = started()
    for robot in ("arm1", "arm2"):
        data = (tmp_path / "a.tar").read_bytes() + (
            bytes(10240) if robot == "arm2" else b""
        )  # the same, another archive
        assert put(app, token_of(app, robot), data).json()["complete"]
    environment = {"VLA_FLEET_KEY": app.key}
    run = lambda *words: CliRunner().invoke(fleet_cli, list(words), env=environment)  # noqa: E731
    shown = run("adapters", "list", "--server", app.url, "--json")
    assert [row["robot"] for row in json.loads(shown.stdout)] == ["arm2", "arm1"]
    out = tmp_path / "adapters"
    fetched = run("adapters", "fetch", "tiny@1.0.0", "--out", str(out), "--server", app.url)
    assert fetched.exit_code == 0, fetched.output
    folders = sorted(map(str, out.iterdir()))
    assert [Path(folder).name for folder in folders] == ["arm1", "arm2"]
    merged = run(
        "adapters",
        "merge",
        *folders,
        "--base",
        str(tiny_base),
        "--out",
        str(tmp_path / "merged"),
        "--weights",
        "examples",
    )
    assert merged.exit_code == 0, merged.output
    assert verify_bundle(tmp_path / "merged").manifest.base == load_manifest(bundle).base
    nobody = run("adapters", "fetch", "tiny@9.9.9", "--out", str(tmp_path / "none"), "--server", app.url)
    assert nobody.exit_code == 1


def archive(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.type, entry.linkname = len(content), kind, "/etc/passwd"
            tar.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def test_what_is_no_adapter_is_refused_and_nothing_of_it_is_kept(
    tiny_base: Path, started: Callable[[], FleetApp], tmp_path: Path
) -> None:
    app = started()
    token = token_of(app, "arm")
    pack(tiny_base, tmp_path / "full.tar")
    for data in (
        b"no archive" * 100,
        archive(("../up.json", b"{}")),
        archive(("/abs.json", b"{}")),
        archive(("..", b"{}")),
        archive(("link", b""), kind=tarfile.SYMTYPE),
        archive(("manifest.json", b"{}")),
        archive(*((f"{number}", b"") for number in range(100))),
        (tmp_path / "full.tar").read_bytes(),
    ):
        refusal = put(app, token, data)
        assert (refusal.status_code, refusal.json()["error_code"]) == (422, "ADAPTER_INVALID"), refusal.text
    assert not listed(app)
    left = [path for path in (tmp_path / "fleet" / "adapters").rglob("*") if path.is_file()]
    assert not left and not (tmp_path / "fleet" / "up.json").exists()
    assert (
        httpx.get(f"{app.url}/v1/robot/adapters/{'0' * 64}", headers={"Authorization": "Bearer x"}).status_code == 401
    )
