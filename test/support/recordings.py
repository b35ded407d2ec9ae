# SPDX-License-Identifier: Apache-2.0
"""Records for tests of the recorder, and recordings as the public ``mcap`` and ``mcap_ros2`` packages read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory

from vla_recorder.records import Record, Topic

COUNTS = Topic("/counts", "std_msgs/msg/UInt32", "uint32 data\n")


def count(number: int, topic: Topic = COUNTS, *, second: float | None = None, padding: int = 0) -> Record:
    """A std_msgs/UInt32 in CDR, received at ``second`` (or ``number`` / 10) of 2026."""
    received_ns = int((1_767_225_600 + (number / 10 if second is None else second)) * 1e9)
    return Record(topic, received_ns, received_ns, b"\0\1\0\0" + number.to_bytes(4, "little") + bytes(padding))


@dataclass(frozen=True)
class Message:
    topic: str
    received_ns: int
    value: Any


class Recording:
    """A file, read with its index, checksums on, every message decoded by the schema that the file itself carries."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as stream:
            reader = make_reader(stream, validate_crcs=True, decoder_factories=[DecoderFactory()])
            self.profile = reader.get_header().profile
            self.summary = reader.get_summary()
            self.metadata = [(m.name, m.metadata) for m in reader.iter_metadata()]
            self.messages = [
                Message(channel.topic, message.log_time, value)
                for _, channel, message, value in reader.iter_decoded_messages()
            ]

    def of(self, topic: str) -> list[Any]:
        """Return the messages of a topic."""
        return [m.value for m in self.messages if m.topic == topic]

    @property
    def causes(self) -> list[str]:
        return [values["cause"] for name, values in self.metadata if name == "vla_ota.black_box"]
