# SPDX-License-Identifier: Apache-2.0
"""A recording as the messages of a contract: ours or any that rosbag2 made, one MCAP file or a folder of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mcap.reader import make_reader
from mcap.summary import Summary
from rclpy.serialization import deserialize_message

from vla_policy_node.contract.model import Contract
from vla_policy_node.errors import ObservationError
from vla_policy_node.replay.replay import STATUS, Message
from vla_ros.interfaces import message_class

_IMAGE, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_STATUS_TYPE = "vla_ota/msg/PolicyStatus"


def _is_damaged(summary: Summary) -> bool:
    """Whether an index names channels or schemas that it lacks: a reader skips what was overwritten with zeros."""
    channels = {channel for chunk in summary.chunk_indexes for channel in chunk.message_index_offsets}
    schemas = {channel.schema_id for channel in summary.channels.values()} - {0}  # 0: it has none
    found, counted = summary.channels.keys(), summary.statistics
    lacks = not found if counted is None else counted.channel_count > len(found)
    return bool(lacks or channels - found or schemas - summary.schemas.keys())


class Bag:
    """A recording. Raises ObservationError BAG_UNREADABLE."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = sorted(path.glob("*.mcap")) if path.is_dir() else [path]
        if not self._files:
            raise ObservationError("BAG_UNREADABLE", f"{path}: no *.mcap in it (sqlite3 bags: ros2 bag convert)")
        self.types: dict[str, str] = {}
        """Topic → type, of what is in CDR."""
        begins: dict[Path, int] = {}
        for file in self._files:
            with self._readable(file), file.open("rb") as stream:
                summary = make_reader(stream).get_summary()
                if summary is None:
                    raise ObservationError("BAG_UNREADABLE", f"{file}: it has no index: try `mcap recover`")
                if _is_damaged(summary):
                    raise ObservationError("BAG_UNREADABLE", f"{file}: its index is damaged: try `mcap recover`")
                begins[file] = summary.statistics.message_start_time if summary.statistics is not None else 0
                for channel in summary.channels.values():
                    if channel.message_encoding == "cdr" and channel.schema_id in summary.schemas:
                        self.types[channel.topic] = summary.schemas[channel.schema_id].name
        self._files.sort(key=lambda file: begins[file])  # by name, the tenth file comes before the second

    @contextlib.contextmanager
    def _readable(self, file: Path) -> Iterator[None]:
        try:
            yield
        except ObservationError:
            raise
        except OSError as e:
            raise ObservationError("BAG_UNREADABLE", f"{file}: {e.strerror or e}") from e
        except Exception as e:  # mcap, struct, lz4 and zstandard each have their own for a damaged file
            raise ObservationError("BAG_UNREADABLE", f"{file}: {e or 'cut short'}: try `mcap recover`") from e

    def messages(self, contract: Contract, namespace: str | None) -> Iterator[Message]:
        """Yield what a robot of this contract observed and was commanded, in the order of reception.

        ``namespace``: of the robot within the recording; None = the only one that has the contract's observations. Raises
        ObservationError BAG_TOPIC_MISSING at once, BAG_UNREADABLE on the way.
        """
        if namespace is None:
            namespace = self._namespace(contract)
        wanted: dict[str, tuple[str, Any]] = {}
        for source in (s for o in contract.observations for s in o.sources):
            name, kind = self._find(source.topic, source.type, namespace)
            wanted[name] = (source.topic, message_class(kind))
        for output in contract.outputs:
            name = _full(output.topic, namespace)
            if self.types.get(name) == output.type:
                wanted[name] = (output.topic, message_class(output.type))
        task = contract.instruction
        if task is not None and self.types.get(name := _full(task.topic, namespace)) == task.type:
            wanted[name] = (task.topic, message_class(task.type))
        status = _full(STATUS, namespace)
        if self.types.get(status) == _STATUS_TYPE:
            wanted[status] = (STATUS, message_class(_STATUS_TYPE))
        return self._read(wanted)

    def _read(self, wanted: dict[str, tuple[str, Any]]) -> Iterator[Message]:
        for file in self._files:
            with self._readable(file), file.open("rb") as stream:
                for _, channel, message in make_reader(stream).iter_messages(topics=list(wanted)):
                    topic, kind = wanted[channel.topic]
                    yield Message(topic, message.log_time, deserialize_message(message.data, kind))

    def _namespace(self, contract: Contract) -> str:
        topics = [(s.topic, s.type) for o in contract.observations for s in o.sources]
        first = topics[0][0].removeprefix("~/")
        ends = (f"/{first}", f"/{first}/compressed")
        candidates = sorted({name.removesuffix(end) for name in self.types for end in ends if name.endswith(end)})
        fits = [n for n in candidates if all(self._has(topic, kind, n) for topic, kind in topics)]
        if len(fits) == 1 or topics[0][0].startswith("/"):
            return fits[0] if fits else ""
        if fits:
            raise ObservationError(
                "BAG_TOPIC_MISSING", f"{self.path}: several robots: say --namespace {' or '.join(fits)}"
            )
        return candidates[0] if candidates else ""  # what is missing there is named

    def _has(self, topic: str, kind: str, namespace: str) -> bool:
        with contextlib.suppress(ObservationError):
            self._find(topic, kind, namespace)
            return True
        return False

    def _find(self, topic: str, kind: str, namespace: str) -> tuple[str, str]:
        """Return name and type in the recording; pictures also compressed, as image_transport and our recorder name them."""
        name = _full(topic, namespace)
        if self.types.get(name) == kind:
            return name, kind
        if kind == _IMAGE and self.types.get(f"{name}/compressed") == _COMPRESSED:
            return f"{name}/compressed", _COMPRESSED
        found = f"it is {self.types[name]}" if name in self.types else f"it has {_some(sorted(self.types))}"
        raise ObservationError("BAG_TOPIC_MISSING", f"{self.path}: the contract needs {name} ({kind}); {found}")


def _full(topic: str, namespace: str) -> str:
    if topic.startswith("/"):
        return topic
    relative = f"policy_node/{topic[2:]}" if topic.startswith("~/") else topic
    return f"/{namespace.strip('/')}/{relative}" if namespace.strip("/") else f"/{relative}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") if names else "no topic"
