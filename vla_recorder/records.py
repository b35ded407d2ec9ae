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
    schema: str  # message definition and those it needs, in the schema's encoding
    latched: bool = False  # its last message stays true until the next one
    encoding: str = "cdr"  # of the messages, as MCAP names it
    schema_encoding: str = "ros2msg"


@dataclass(frozen=True, slots=True)
class Record:
    """One serialised message. Times are of the wall clock [ns since 1970]."""

    topic: Topic
    received_ns: int
    published_ns: int
    data: bytes

    @property
    def size(self) -> int:
        """What it takes in memory [bytes]."""
        return len(self.data) + OVERHEAD_BYTES


@dataclass(frozen=True)
class Note:
    """What is known of a recording as a whole: a metadata record."""

    name: str
    values: dict[str, str]
