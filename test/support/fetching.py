# SPDX-License-Identifier: Apache-2.0
"""One download in a process of its own, to be killed: ``python -m support.fetching '{"folder", "url", "sha256", "size", …}'``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from support.downloads import blob_store
from support.filesystems import CrashingFilesystem
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.fetch.fetcher import Fetcher, Received
from vla_ota_manager.fetch.source import parse_url


def main() -> None:
    """``crash_at``: point at which it kills itself; "" = nowhere."""
    job = json.loads(sys.argv[1])
    url = parse_url(job["url"])
    config = OtaConfig(store_dir="/unused", allowed_sources=(f"http://{url.host}:{url.port}",))
    blobs = blob_store(Path(job["folder"]), CrashingFilesystem(job["crash_at"]))
    Fetcher(config, blobs).blob([url], job["sha256"], job["size"], Received(), lambda done: None, lambda: False)


if __name__ == "__main__":
    main()
