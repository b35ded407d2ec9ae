# SPDX-License-Identifier: Apache-2.0
"""One command publisher of ours a topic and machine: an flock that the kernel releases when the process ends."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path

from vla_policy_node.errors import ControlError


class TopicLock:
    """Held from construction to :meth:`close`. Raises ControlError COMMAND_TOPIC_LOCKED."""

    def __init__(self, domain_id: int, topic: str, folder: str | Path | None = None) -> None:
        """``topic``: the resolved name. ``folder``: the machine's temporary folder if not given."""
        name = hashlib.sha256(f"{domain_id} {topic}".encode()).hexdigest()[:32]
        self.path = Path(folder or tempfile.gettempdir()) / f"vla_ota_command_{name}.lock"
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
