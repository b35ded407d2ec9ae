# SPDX-License-Identifier: Apache-2.0
"""The server may leave the bytes of files to somebody else; it still says who may have them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from support.bundles import make_bundle
from support.fleet_app import FleetApp

from vla_fleet.client import Client
from vla_fleet.errors import InputError
from vla_fleet.server.files import ACCEL
from vla_fleet.server.run import run
from vla_fleet.storage.blobs import FilesBy


def test_the_proxy_in_front_sends_a_file_once_the_server_has_said_that_it_may(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "bundle")
    with FleetApp(tmp_path / "fleet", files_by=FilesBy.X_ACCEL) as app, app.client() as client:
        client.publish(tmp_path / "bundle")
        for entry in manifest.files:
            path = f"/files/blobs/sha256/{entry.sha256}"
            assert httpx.get(app.url + path, timeout=40).status_code == 401
            answer = httpx.get(app.url + path, headers={"Authorization": f"Bearer {app.key}"}, timeout=40)
            assert (answer.status_code, answer.content) == (200, b"")
            assert answer.headers["x-accel-redirect"] == f"{ACCEL}/{entry.sha256}"
            sent = tmp_path / "fleet/blobs/sha256" / entry.sha256
            assert sent.read_bytes() == (tmp_path / "bundle" / entry.path).read_bytes()
            assert sent.stat().st_mode & 0o444 == 0o444, "nginx is another user"
        missing = httpx.get(
            f"{app.url}/files/blobs/sha256/{'0' * 64}", headers={"Authorization": f"Bearer {app.key}"}, timeout=40
        )
        assert missing.status_code == 404 and "x-accel-redirect" not in missing.headers


def test_a_client_shows_its_key_to_the_server_only(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "bundle")
    files = {entry.sha256: tmp_path / "bundle" / entry.path for entry in manifest.files}
    seen: dict[str, set[str]] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        seen.setdefault(request.url.host, set()).add(request.headers.get("authorization", ""))
        name = request.url.path.rpartition("/")[2]
        if request.url.host == "store":
            return httpx.Response(200, content=files[name].read_bytes())
        if name in files:
            return httpx.Response(307, headers={"Location": f"http://store/{name}?signature=1"})
        if name == "manifest.json":
            return httpx.Response(200, content=manifest.canonical())
        version = {"name": manifest.name, "version": manifest.version, "digest": manifest.digest, "aliases": []}
        return httpx.Response(200, json=[version])

    with Client("http://server", "vf_secret", httpx.MockTransport(answer)) as client:
        client.download(f"{manifest.name}@{manifest.version}", tmp_path / "down")
    assert seen == {"server": {"Bearer vf_secret"}, "store": {""}}


@pytest.mark.parametrize(("by", "blobs"), [(FilesBy.LINKS, ""), (FilesBy.X_ACCEL, "s3://fleet/robots")])
def test_files_are_left_to_nobody_who_does_not_have_them(tmp_path: Path, by: FilesBy, blobs: str) -> None:
    with pytest.raises(InputError, match=f"--files-by {by.value}"):
        run(tmp_path, "127.0.0.1", 0, "", 10.0, None, None, blobs=blobs, files_by=by)
