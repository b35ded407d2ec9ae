# SPDX-License-Identifier: Apache-2.0
"""One command publisher of ours a topic and machine: an flock that the kernel releases when the process ends."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

from vla_policy_node.errors import ControlError

FOLDERS = ("/run/lock", "/var/lock", "/tmp")
"""The first of these that can be written: the same for every process of the machine, whatever its TMPDIR.

Containers that share a robot have to share this folder too (``--volume /run/lock:/run/lock``): a lock is as wide as its file.
"""


class TopicLock:
    """Held from construction to :meth:`close`. Raises ControlError COMMAND_TOPIC_LOCKED."""

    def __init__(self, domain_id: int, topic: str, folder: str | Path | None = None) -> None:
        """``topic``: the resolved name. ``folder``: the first usable one of ``FOLDERS`` if not given."""
        name = hashlib.sha256(f"{domain_id} {topic}".encode()).hexdigest()[:32]
        self.path = Path(folder or _folder()) / f"vla_ota_command_{name}.lock"
        self._fd = self._open()
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(self._fd)
            text = f"another control process commands {topic} in ROS domain {domain_id} ({self.path})"
            raise ControlError("COMMAND_TOPIC_LOCKED", text) from e

    def _open(self) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            try:
                return os.open(self.path, flags)  # it may be another user's: flock needs no right to write
            except FileNotFoundError:
                return os.open(self.path, flags | os.O_CREAT, 0o644)
        except OSError as e:
            raise ControlError("COMMAND_TOPIC_LOCKED", f"{self.path}: {e}") from e

    def close(self) -> None:
        """Release. The file stays: taking it away would let two processes lock two files of the same name."""
        os.close(self._fd)


def _folder() -> str:
    return next((f for f in FOLDERS if os.access(f, os.W_OK | os.X_OK)), FOLDERS[-1])
