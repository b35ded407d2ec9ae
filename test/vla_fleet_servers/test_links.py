# SPDX-License-Identifier: Apache-2.0
"""Files come from the object store, by links that the server signs; moto's server stands in for the store."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from support.bundles import make_bundle
from support.fleet import FleetServer, enrolled
from support.servers import Moto

from vla_checkpoint.manifest import FileEntry
from vla_fleet.clock import SystemClock
from vla_fleet.protocol import ModelUpdate
from vla_fleet.server.passes import Passes
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import FetchError
from vla_ota_manager.fetch.fetcher import Fetcher, Received
from vla_ota_manager.fetch.source import Url, join_url, parse_url
from vla_ota_manager.store.blobs import BlobStore
from vla_ota_manager.store.filesystem import Filesystem


def test_a_link_leads_whoever_may_read_to_the_object_store_and_nobody_else(tmp_path: Path, moto: Moto) -> None:
    store = moto.environment["AWS_ENDPOINT_URL"]
    options = ("--blobs", f"{moto.url}/links", "--files-by", "links")
    manifest = make_bundle(tmp_path / "bundle")
    entry = max(manifest.files, key=lambda file: file.size)
    whole = (tmp_path / "bundle" / entry.path).read_bytes()
    with (
        FleetServer(tmp_path / "server", options=options, environment=moto.environment) as server,
        server.client() as client,
    ):
        client.publish(tmp_path / "bundle")
        url, token = f"{server.url}/files/blobs/sha256/{entry.sha256}", enrolled(client, "arm_1")

        assert httpx.get(url, timeout=30).json()["error_code"] == "KEY_MISSING"
        answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=30)
        link = answer.headers["location"]
        assert (answer.status_code, answer.content) == (307, b"") and link.startswith(store)
        assert answer.headers["cache-control"] == "no-store" and "X-Amz-Signature" in link and token not in link
        missing = url.replace(entry.sha256, "0" * 64)
        assert httpx.get(missing, headers={"Authorization": f"Bearer {token}"}, timeout=30).status_code == 404
        assert client.download(f"{manifest.name}@{manifest.version}", tmp_path / "down").is_dir()

        key = (server.data / "files.key").read_bytes()
        order = ModelUpdate(
            name=manifest.name, version=manifest.version, manifest_sha256=manifest.digest,
            manifest_url=f"{server.url}/files/{manifest.name}/{manifest.version}/manifest.json",
        )  # fmt: skip
        ordered = Passes(key, f"{server.url}/files", SystemClock()).through(order, "arm_1")
        assert isinstance(ordered, ModelUpdate)
        file = join_url(parse_url(ordered.manifest_url), f"../../blobs/sha256/{entry.sha256}")
        for half in (0, len(whole) // 2):
            robot = Robot(tmp_path / f"robot-{half}", server.url, store)
            robot.blobs.partial(entry.sha256).write_bytes(whole[:half])
            assert robot.fetch(file, entry) == whole
            assert robot.received.count == len(whole) - half, "the store gives the rest only"
        with pytest.raises(FetchError, match="REDIRECT_REFUSED"):
            Robot(tmp_path / "strict", server.url).fetch(file, entry)


class Robot:
    """A manager's fetcher on an empty store."""

    def __init__(self, folder: Path, *sources: str) -> None:
        self.blobs = BlobStore(folder / "blobs/sha256", folder / "partial", Filesystem())
        self.blobs.blob_dir.mkdir(parents=True)
        self.blobs.partial_dir.mkdir()
        self.received = Received()
        self._fetcher = Fetcher(OtaConfig(store_dir="/unused", allowed_sources=sources), self.blobs)

    def fetch(self, url: Url, entry: FileEntry) -> bytes:
        self._fetcher.blob([url], entry.sha256, entry.size, self.received, lambda offset: None, lambda: False)
        return self.blobs.blob(entry.sha256).read_bytes()
