# SPDX-License-Identifier: Apache-2.0
"""A robot's fetcher on an empty store, and a server that has one blob."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest

from support.waits import wait_for
from vla_checkpoint.arrival import Arrived
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import OtaError
from vla_ota_manager.fetch.fetcher import Fetcher, Received
from vla_ota_manager.fetch.source import parse_url
from vla_ota_manager.store.blobs import BlobStore
from vla_ota_manager.store.filesystem import Filesystem
from vla_sim.checkpoint_server import CheckpointServer


def blob_store(folder: Path, filesystem: Filesystem | None = None) -> BlobStore:
    """Return the blobs of a store in ``folder``."""
    filesystem = filesystem or Filesystem()
    blobs = BlobStore(folder / "blobs/sha256", folder / "partial", filesystem)
    filesystem.make_dir(blobs.blob_dir)
    filesystem.make_dir(blobs.partial_dir)
    return blobs


class Bench:
    """The blob is ``data``, served at ``path``."""

    def __init__(self, folder: Path, server: CheckpointServer, data: bytes) -> None:
        self.folder, self.server, self.data = folder, server, data
        self.digest = hashlib.sha256(data).hexdigest()
        self.path = f"blobs/sha256/{self.digest}"
        (server.root / "blobs/sha256").mkdir(parents=True)
        (server.root / self.path).write_bytes(data)
        self.blobs = blob_store(folder)
        self.received = Received()
        self.cancelled = threading.Event()
        self.largest_partial = 0
        self.arrived: dict[str, Arrived] = {}

    def fetch(self, *urls: str, size: int = -1, digest: str = "", **settings: Any) -> None:
        defaults: dict[str, Any] = {"retries": 3, "backoff_s": 0.01, "backoff_max_s": 0.02, "read_timeout_s": 10.0}
        allowed = (self.server.base, self.folder.as_uri())
        config = OtaConfig(store_dir="/unused", **{"allowed_sources": allowed, **defaults, **settings})
        parsed = [parse_url(url) for url in urls or (self.server.url(self.path),)]
        size, digest = len(self.data) if size < 0 else size, digest or self.digest
        fetcher = Fetcher(config, self.blobs)
        self.arrived = fetcher.arrived
        fetcher.blob(parsed, digest, size, self.received, self._on_progress, self.cancelled.is_set)

    def _on_progress(self, offset: int) -> None:
        self.largest_partial = max(self.largest_partial, offset)

    def refused(self, *urls: str, **arguments: Any) -> OtaError:
        with pytest.raises(OtaError) as caught:
            self.fetch(*urls, **arguments)
        assert not self.blobs.blob(self.digest).exists()
        return caught.value

    @property
    def complete(self) -> bool:
        return self.blobs.blob(self.digest).read_bytes() == self.data and self.blobs.claim(self.digest, len(self.data))

    @property
    def served(self) -> int:
        """Bytes of the blob that the server has sent so far."""
        return self.server.served[f"/{self.path}"]

    @property
    def ranges(self) -> list[str | None]:
        """What was asked for of the blob, request by request."""
        return [headers.get("range") for path, headers in list(self.server.requests) if path == f"/{self.path}"]

    @property
    def there(self) -> int:
        """Bytes of the blob that a restart would rely on."""
        return self.blobs.info(self.digest, len(self.data)).size


def wait_until_nothing_is_left_behind() -> None:
    """Wait until every thread that fetched has ended."""
    wait_for(
        lambda: not [thread for thread in threading.enumerate() if thread.name == "vla_ota_fetch"],
        "the end of the fetching threads",
    )
