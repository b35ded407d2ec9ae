# SPDX-License-Identifier: Apache-2.0
"""Sends a proven adapter to the fleet server, as one archive and piece by piece, as the recorder sends episodes."""

from __future__ import annotations

import logging
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import requests

from vla_adaptation.settings import AdaptationSettings
from vla_adaptation.state import Adapter
from vla_recorder.episodes.upload import LaterError, RefusedError, Sender, Upload, retry_after_s

LOG = logging.getLogger("vla_adaptation")

_LOOK_S = 5.0


class Source(Protocol):
    """Where adapters come from: the engine."""

    def to_upload(self) -> Adapter | None:
        """Return the adapter that the server lacks."""

    def may_upload(self) -> bool:
        """Whether this is a good time to send."""

    def sent(self, adapter: Adapter, refusal: str = "") -> None:
        """Remember that the server has it, or why it will never take it."""


def pack(bundle: Path, archive: Path) -> None:
    """Write a bundle's files side by side into an archive; equal files give equal bytes. Raises OSError."""
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(bundle.iterdir()):
            entry = tarfile.TarInfo(path.name)
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                tar.addfile(entry, file)


class AdapterUploader(threading.Thread):
    """Uploads in the background until :meth:`stop`. An attempt that fails is made again later."""

    def __init__(self, source: Source, settings: AdaptationSettings) -> None:
        super().__init__(name="adapter upload", daemon=True)
        self._source, self._archive = source, settings.folder / "upload.tar"
        token = Path(settings.state_dir) / "token"
        server = settings.server.rstrip("/").replace("ws", "http", 1)
        self._sender = Sender(Upload(server, token, settings.ca_file), "adapters")
        self._stopping = threading.Event()
        self.problem = ""
        """Why the last attempt failed; empty = it did not."""

    def stop(self) -> None:
        """End after the piece that is on its way."""
        self._stopping.set()
        if self.is_alive():
            self.join(2.0)

    def run(self) -> None:
        """See the class."""
        failures = 0
        while not self._stopping.is_set():
            wait_s = _LOOK_S
            try:
                adapter = self._source.to_upload()
                if adapter is not None and self._may():
                    self._send(adapter, self._may)
                failures, self.problem = 0, ""
            except (LaterError, requests.RequestException, OSError) as e:
                failures += 1
                wait_s = max(retry_after_s(failures), getattr(e, "wait_s", 0.0))
                self.problem = " ".join(str(e).split())
            self._stopping.wait(wait_s)

    def _may(self) -> bool:
        return not self._stopping.is_set() and self._source.may_upload()

    def _send(self, adapter: Adapter, may: Callable[[], bool]) -> None:
        pack(Path(adapter.folder), self._archive)
        refusal = ""
        try:
            if not self._sender.send(self._archive, may, lambda seconds: None):
                return
            LOG.info("adapter %s is uploaded", adapter.version)
        except RefusedError as e:
            refusal = str(e)
            LOG.error("adapter %s is refused, and stays here: %s", adapter.version, refusal)
        self._archive.unlink(missing_ok=True)
        self._source.sent(adapter, refusal)
