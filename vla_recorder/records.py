# SPDX-License-Identifier: Apache-2.0
"""What is recorded: serialised messages, each with its topic and times."""

from __future__ import annotations

from dataclasses import dataclass

OVERHEAD_BYTES = 256
"""What a record costs in memory beside its data, roughly [bytes]."""


@dataclass(frozen=True)
class Topic:
    """A recorded topic."""

    name: str  # full name
    type: str  # "package/msg/Name"
    schema: str  # message definition and those it needs, as the schema encoding ros2msg of MCAP has them
    latched: bool = False  # its last message stays true until the next one


@dataclass(frozen=True, slots=True)
class Record:
    """One message in CDR. Times are of the wall clock [ns since 1970]."""

    topic: Topic
    received_ns: int
    published_ns: int
    data: bytes

    @property
    def size(self) -> int:
        """What it takes in memory [bytes]."""
        return len(self.data) + OVERHEAD_BYTES
