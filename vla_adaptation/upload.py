# SPDX-License-Identifier: Apache-2.0
"""Sends a proven adapter to the fleet server, as one archive and piece by piece, as the recorder sends episodes."""

from __future__ import annotations

import logging
import tarfile
from pathlib import Path
from typing import Protocol

from vla_adaptation.settings import AdaptationSettings
from vla_adaptation.state import Adapter
from vla_recorder.episodes.upload import RefusedError, Upload, Uploading

LOG = logging.getLogger("vla_adaptation")


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


class AdapterUploader(Uploading):
    """Uploads adapters."""

    def __init__(self, source: Source, settings: AdaptationSettings) -> None:
        server = settings.server.rstrip("/").replace("ws", "http", 1)
        super().__init__(Upload(server, Path(settings.state_dir) / "token", settings.ca_file), "adapters")
        self._source, self._archive = source, settings.folder / "upload.tar"

    def look(self) -> None:
        """See Uploading."""
        adapter = self._source.to_upload()
        if adapter is None:
            self._went_well()
            return
        if not self._source.may_upload():
            return
        pack(Path(adapter.folder), self._archive)
        refusal = ""
        try:
            if not self._send(self._archive, self._source.may_upload):
                return
            LOG.info("adapter %s is uploaded", adapter.version)
        except RefusedError as e:
            refusal = str(e)
            LOG.error("adapter %s is refused, and stays here: %s", adapter.version, refusal)
            self._went_well()
        self._archive.unlink(missing_ok=True)
        self._source.sent(adapter, refusal)
