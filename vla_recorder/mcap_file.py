# SPDX-License-Identifier: Apache-2.0
"""One recording on disk: MCAP as rosbag2 and Foxglove read it (profile ``ros2``, schemas ``ros2msg``, messages in CDR).

While it is being written it is called ``NAME.mcap.part``. What was flushed survives the process, and :func:`recover` makes a
whole file of it. A name without ``.part`` is always a complete file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mcap.reader import make_reader
from mcap.records import Channel, Message, Metadata, Schema
from mcap.stream_reader import StreamReader
from mcap.writer import Writer

from vla_recorder.errors import io_error
from vla_recorder.records import Note, Record, Topic

PART = ".part"
_RECOVERING = ".recovering"
_CHUNK_BYTES = 256 << 10
_LIBRARY = "vla_ota"


class McapFile:
    """A recording that is being written; one thread. Every method raises RecorderError DISK_FULL or RECORDING_IO."""

    def __init__(self, path: Path, suffix: str = PART) -> None:
        """``suffix``: of the name while it is being written; a file of that name must not be there."""
        self.path, self._part = path, path.with_name(path.name + suffix)
        self._channels: dict[Topic, int] = {}
        self._schemas: dict[str, int] = {}
        self._sequences: dict[int, int] = {}
        with _wrapped(self._part):
            self._stream: BinaryIO = self._part.open("xb")
            self._writer = Writer(self._stream, chunk_size=_CHUNK_BYTES)
            self._writer.start(profile="ros2", library=_LIBRARY)

    @property
    def size(self) -> int:
        """Bytes written so far; what is not flushed yet is not counted."""
        return self._stream.tell()

    def write(self, record: Record) -> None:
        """Append a record."""
        with _wrapped(self._part):
            channel = self._channels.get(record.topic)
            if channel is None:
                channel = self._channels[record.topic] = self._register(record.topic)
            self._sequences[channel] = self._sequences.get(channel, 0) + 1
            self._writer.add_message(
                channel, record.received_ns, record.data, record.published_ns, self._sequences[channel]
            )

    def _register(self, topic: Topic) -> int:
        schema = self._schemas.get(topic.type)
        if schema is None:
            schema = self._writer.register_schema(topic.type, topic.schema_encoding, topic.schema.encode())
            self._schemas[topic.type] = schema
        return self._writer.register_channel(topic.name, topic.encoding, schema)

    def note(self, note: Note) -> None:
        """Append a metadata record."""
        with _wrapped(self._part):
            self._writer.add_metadata(note.name, note.values)

    def flush(self, *, to_disk: bool = False) -> None:
        """Hand everything so far to the kernel; ``to_disk``: it survives a power loss too."""
        with _wrapped(self._part):
            self._writer.flush()  # type: ignore[no-untyped-call]
            if to_disk:
                os.fsync(self._stream.fileno())

    def finish(self) -> None:
        """Write the index, make all of it durable and give the file its name."""
        with _wrapped(self._part):
            self._writer.finish()  # type: ignore[no-untyped-call]
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._part.rename(self.path)
            _flush_folder(self.path.parent)

    def discard(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)


Item = Record | Note
Mend = Callable[[Iterator[Item]], Iterator[Item]]


def recover(part: Path, mend: Mend = iter) -> Path | None:
    """Make a complete file of what a killed recorder left, and return it; None: it held no message. The part is gone then.

    ``mend`` gets what is whole and yields what is written. Raises RecorderError; the part stays.
    """
    path = part.with_name(part.name.removesuffix(PART))
    with _wrapped(path):
        path.with_name(path.name + _RECOVERING).unlink(missing_ok=True)  # a recovery that was interrupted
    file, messages = McapFile(path, _RECOVERING), 0
    try:
        with _wrapped(part), part.open("rb") as stream:
            for item in mend(_readable(stream)):
                if isinstance(item, Note):
                    file.note(item)
                else:
                    file.write(item)
                    messages += 1
        if messages:
            file.finish()
        else:
            file.discard()
    except BaseException:
        file.discard()
        raise
    with _wrapped(part):
        part.unlink()
        _flush_folder(part.parent)
    return path if messages else None


def note_of(path: Path, name: str) -> dict[str, str] | None:
    """Return the values of a complete file's metadata record of that name; None: it has none, or cannot be read."""
    try:
        with path.open("rb") as stream:
            return next((m.metadata for m in make_reader(stream).iter_metadata() if m.name == name), None)
    except Exception:  # OSError; mcap and struct have their own for damaged files
        return None


def _readable(stream: BinaryIO) -> Iterator[Item]:
    """Yield what is whole, up to the first record that is cut short or damaged."""
    schemas: dict[int, Schema] = {}
    topics: dict[int, Topic] = {}
    records = iter(StreamReader(stream, validate_crcs=True).records)
    while True:
        try:
            record = next(records)
        except OSError:
            raise
        except Exception:  # StopIteration; mcap, struct and zstandard each have their own for bytes that are cut off
            return
        if isinstance(record, Schema):
            schemas[record.id] = record
        elif isinstance(record, Channel) and record.schema_id in schemas:
            schema = schemas[record.schema_id]
            text, encodings = schema.data.decode(errors="replace"), (record.message_encoding, schema.encoding)
            topics[record.id] = Topic(record.topic, schema.name, text, False, *encodings)
        elif isinstance(record, Message) and record.channel_id in topics:
            yield Record(topics[record.channel_id], record.log_time, record.publish_time, record.data)
        elif isinstance(record, Metadata):
            yield Note(record.name, record.metadata)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _wrapped(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise io_error(e, path) from e
