"""The server of demo and tests: nothing outside its folder, no faster than it is told, every byte counted once."""

from __future__ import annotations

import http.client
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.bundles import make_bundle
from support.waits import wait_for

from vla_checkpoint import load_manifest
from vla_sim.checkpoint_server import Behaviour, CheckpointServer, publish_bundle

BODY = bytes(range(256)) * 400


def get(server: CheckpointServer, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.base).port or 0, timeout=40)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/nothing", "/../secret", "/%2e%2e/secret", "/"])
def test_nothing_outside_the_folder_is_served(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_bytes(b"not for you")
    (tmp_path / "www").mkdir()
    with CheckpointServer(tmp_path / "www") as server:
        assert get(server, path) == (404, b"")


def test_bytes_are_sent_at_its_usual_rate_and_counted_by_path_and_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BODY)
    rate_bytes_s = 250_000.0
    with CheckpointServer(tmp_path, Behaviour(rate_bytes_s=rate_bytes_s)) as server:
        begun, begun_s = time.monotonic(), time.time()
        assert get(server, "/file") == (200, BODY)
        assert time.monotonic() - begun >= (len(BODY) - 8192) / rate_bytes_s  # the first piece leaves at once
        assert get(server, "/file", Range="bytes=1000-") == (206, BODY[1000:])
        wait_for(lambda: server.served["/file"] == 2 * len(BODY) - 1000, "the count, made after a piece has left")
        assert server.sent_between(begun_s, time.time()) == 2 * len(BODY) - 1000
        assert server.sent_between(0.0, begun_s) == 0


def test_a_bundle_is_laid_out_as_a_registry_has_it_with_the_promised_names(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", name="pick", version="1.0.0")
    weights = tmp_path / "bundle" / "model.safetensors"
    damaged = weights.read_bytes()[:-1] + b"?"
    weights.write_bytes(damaged)
    assert publish_bundle(tmp_path / "www", tmp_path / "bundle") == "pick/1.0.0/manifest.json"
    manifest = load_manifest(tmp_path / "bundle")
    blobs = tmp_path / "www" / "blobs" / "sha256"
    assert {blob.name for blob in blobs.iterdir()} == {entry.sha256 for entry in manifest.files}
    entry = manifest.file("model.safetensors")
    assert entry is not None and (blobs / entry.sha256).read_bytes() == damaged
