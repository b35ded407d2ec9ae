# SPDX-License-Identifier: Apache-2.0
"""What the manager does with an offer, up to an installed version; it says its memory before that and at its peak.

``python update_client.py '{"store", "source", "manifest_url", "manifest_sha256"}'``
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from vla_ota_manager.acquire import Acquirer, Callbacks
from vla_ota_manager.config import OtaConfig
from vla_ota_manager.fetch.fetcher import Fetcher
from vla_ota_manager.records import Update
from vla_ota_manager.states import UpdateState
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.state import UpdateRecord
from vla_ota_manager.store.store import Store


def resident(name: str) -> int:
    """Return VmRSS or VmHWM (the largest it was) [bytes]."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    settings = json.loads(sys.argv[1])
    config = OtaConfig(store_dir=settings["store"], allowed_sources=(settings["source"],), min_free_bytes=0)
    store = Store(Path(settings["store"]), Filesystem())
    store.open()
    acquirer = Acquirer(config, store, Fetcher(config, store.blobs), time.time)
    callbacks = Callbacks(lambda: False, lambda text: None, lambda done, total: None, lambda share: None)
    record = UpdateRecord(Update("big", settings["manifest_url"], settings["manifest_sha256"]))
    idle = resident("VmRSS")
    states = [record.state.name]
    while record.state is not UpdateState.INSTALLED:
        record, _ = acquirer.step(record, callbacks)
        states.append(record.state.name)
    store.blobs.release(set())
    store.close()
    print(json.dumps({"idle": idle, "peak": resident("VmHWM"), "states": states}), flush=True)


if __name__ == "__main__":
    main()
