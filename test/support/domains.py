# SPDX-License-Identifier: Apache-2.0
"""ROS domains for tests: every test session on this machine gets numbers that nobody else uses meanwhile."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FIRST, LAST = 1, 79


@contextmanager
def claim_domain() -> Iterator[int]:
    """Hold a ROS_DOMAIN_ID; a lock on a file gives it back even if the process is killed."""
    folder = Path(tempfile.gettempdir()) / "vla_ota_test_domains"
    folder.mkdir(exist_ok=True)
    for domain in range(FIRST, LAST + 1):
        with (folder / str(domain)).open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield domain
            return
    raise RuntimeError("no free ROS domain")
