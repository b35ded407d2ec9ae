"""The demo's checkpoint server answers as a static server does, keeps to its rate, and counts every byte it sends."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.bundles import make_bundle
from support.ros import wait_for

from vla_checkpoint import load_manifest
from vla_sim.demo.server import CheckpointServer, publish

BODY = bytes(range(256)) * 400


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CheckpointServer]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "file").write_bytes(BODY)
    (tmp_path / "secret").write_bytes(b"not for you")
    with CheckpointServer(tmp_path / "www", rate_bytes_s=10e6) as server:
        yield server


def get(server: CheckpointServer, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.base_url).port or 0, timeout=10)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def test_a_file_is_served_whole_with_a_validator(server: CheckpointServer) -> None:
    status, headers, body = get(server, "/file")
    assert (status, body) == (200, BODY)
    assert headers["etag"].startswith('"') and headers["content-length"] == str(len(BODY))
    assert get(server, "/file")[1]["etag"] == headers["etag"]


def test_the_rest_of_a_file_is_served_on_request(server: CheckpointServer) -> None:
    etag = get(server, "/file")[1]["etag"]
    status, headers, body = get(server, "/file", Range="bytes=1000-", If_Range=etag)
    assert (status, body) == (206, BODY[1000:])
    assert headers["content-range"] == f"bytes 1000-{len(BODY) - 1}/{len(BODY)}"
    assert get(server, "/file", Range="bytes=10-19")[2] == BODY[10:20]


def test_a_file_that_has_changed_since_is_served_whole(server: CheckpointServer) -> None:
    status, _, body = get(server, "/file", Range="bytes=1000-", If_Range='"another"')
    assert (status, body) == (200, BODY)


def test_a_range_behind_the_end_is_refused_with_the_size(server: CheckpointServer) -> None:
    status, headers, body = get(server, "/file", Range=f"bytes={len(BODY)}-")
    assert (status, body, headers["content-range"]) == (416, b"", f"bytes */{len(BODY)}")


@pytest.mark.parametrize("path", ["/nothing", "/../secret", "/%2e%2e/secret", "/"])
def test_nothing_outside_the_folder_is_served(server: CheckpointServer, path: str) -> None:
    status, _, body = get(server, path)
    assert status == 404 and b"not for you" not in body
    assert server.served_bytes() == 0


def test_bytes_are_counted_by_path_and_time(server: CheckpointServer) -> None:
    (server.root / "blobs").mkdir()
    (server.root / "blobs" / "a").write_bytes(b"12345")
    get(server, "/file")
    wait_for(lambda: server.served_bytes() == len(BODY), "the count, which is made after the last byte has left")
    between_s = time.time()
    get(server, "/blobs/a")
    get(server, "/blobs/a", Range="bytes=3-")
    wait_for(lambda: server.served_bytes() == len(BODY) + 7, "the count of the second file")
    assert server.served_bytes("/file") == len(BODY)
    assert server.served_bytes("/blobs/") == server.served_bytes("/blobs/a") == 7
    assert server.served_bytes(since_s=between_s) == 7
    assert server.served_bytes(until_s=between_s) == len(BODY)
    assert [(r.status, r.first) for r in server.requests("/blobs/a")] == [(200, 0), (206, 3)]


def test_a_download_is_no_faster_than_the_rate(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BODY)
    rate_bytes_s = 250_000.0
    with CheckpointServer(tmp_path, rate_bytes_s) as server:
        begun = time.monotonic()
        assert get(server, "/file")[2] == BODY
        first_slice_bytes = 16 * 1024  # leaves at once
        assert time.monotonic() - begun >= (len(BODY) - first_slice_bytes) / rate_bytes_s


def test_what_a_client_that_died_in_a_pause_did_not_get_is_not_counted(server: CheckpointServer) -> None:
    server.pause_after("/file", 30_000)
    client = socket.create_connection(("127.0.0.1", urlsplit(server.base_url).port or 0), timeout=10)
    client.sendall(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
    assert server.wait_paused(10.0)
    sent = server.served_bytes("/file")
    assert 30_000 <= sent < len(BODY)
    received = b""
    while not received.endswith(BODY[:sent]):
        received += client.recv(65536)
    client.close()
    server.resume()
    assert get(server, "/file", Range=f"bytes={sent}-")[2] == BODY[sent:]
    wait_for(lambda: server.served_bytes("/file") == len(BODY), "every byte to be counted once")


def test_a_bundle_is_laid_out_as_a_registry_has_it_with_the_promised_names(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", name="pick", version="1.0.0")
    weights = tmp_path / "bundle" / "model.safetensors"
    damaged = weights.read_bytes()[:-1] + b"?"
    weights.write_bytes(damaged)
    path = publish(tmp_path / "bundle", tmp_path / "www")
    assert path == "pick/1.0.0/manifest.json"
    manifest = load_manifest(tmp_path / "bundle")
    blobs = tmp_path / "www" / "blobs" / "sha256"
    assert {blob.name for blob in blobs.iterdir()} == {entry.sha256 for entry in manifest.files}
    entry = manifest.file("model.safetensors")
    assert entry is not None and (blobs / entry.sha256).read_bytes() == damaged
