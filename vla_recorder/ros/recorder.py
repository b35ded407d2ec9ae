# SPDX-License-Identifier: Apache-2.0
"""The node ``recorder``: the black box of one policy, in a process of its own.

It takes messages from its subscriptions ten times a second rather than being woken by each: a camera's pictures but the newest
are never looked at, and what is kept is kept as it came (in CDR). Topics of the robot are heard best effort, so that no publisher
waits for the recorder.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from vla_policy_node.contract.model import Contract, load_contract
from vla_recorder.blackbox import BlackBox, Cause
from vla_recorder.errors import RecorderError
from vla_recorder.pictures import jpeg
from vla_recorder.records import Record, Topic
from vla_recorder.ros.schemas import schema
from vla_recorder.settings import RecorderSettings
from vla_recorder.shelf import Shelf
from vla_recorder.triggers import Triggers
from vla_ros import qos
from vla_ros.diagnostics import OK, WARN, Diagnostics, Report
from vla_ros.interfaces import message_class
from vla_ros.log_forwarding import forward_log
from vla_ros.parameters import declare, refuse_unknown
from vla_ros.runtime import main as run_main

_ABOUT = (
    "The black box of one policy: writes the last seconds as MCAP when the robot holds, rolls back or loses a worker."
)
_TAKE_S = 0.1
_DEPTH = 200  # of a queue that is emptied every _TAKE_S
_SAVE_S = 30.0
_PICTURES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")


class _NeverGroup(CallbackGroup):
    """Its entities are never executed: what they have is taken by a timer."""

    def can_execute(self, entity: Any) -> bool:
        return False


@dataclass
class _Input:
    """A topic that is recorded."""

    topic: Topic
    kind: Any
    subscription: Any
    picture: bool = False
    required: bool = False  # an observation of the contract
    period_ns: int = 0  # shortest time between two that are kept; 0 = all are
    look: Callable[[Any], Cause | None] | None = None  # whether a message is worth a recording
    due_ns: int = 0  # when the next picture is taken, monotonic
    kept_ns: int = 0  # when the last one that was kept was received, wall clock
    count: int = 0
    unusable: str = ""  # encoding of pictures that cannot be kept


class RecorderNode(Node):
    """Subscriptions, a timer and a service on a :class:`BlackBox`."""

    def __init__(self) -> None:
        super().__init__("recorder")
        refuse_unknown(self, RecorderSettings)
        self._settings = settings = declare(self, RecorderSettings)
        forward_log(self, "vla_recorder")
        contract = load_contract(settings.contract)
        self._shelf = Shelf(Path(settings.recording_dir).expanduser(), settings.max_disk_bytes, settings.min_free_bytes)
        self._shelf.recover()
        self._box = BlackBox(
            self._shelf,
            before_s=settings.before_s,
            after_s=settings.after_s,
            max_memory_bytes=settings.max_memory_bytes,
            max_file_bytes=settings.max_file_bytes,
        )
        self._triggers = Triggers()
        self._taking, self._closed = threading.Lock(), False
        self._began_ns = time.time_ns()
        self._never = _NeverGroup()
        self._inputs: dict[str, _Input] = {}
        self._asked: queue.SimpleQueue[Future[Callable[[float], Path]]] = queue.SimpleQueue()
        self._subscribe_robot(contract)
        self._subscribe_ours()
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # also while simulated time stands still
        self.create_timer(_TAKE_S, self._take_all, callback_group=MutuallyExclusiveCallbackGroup(), clock=steady)
        self.create_service(Trigger, "~/save", self._save, callback_group=ReentrantCallbackGroup())
        Diagnostics(self, lambda: contract.robot_type).add("black box", self._report)

    def close(self) -> None:
        """Finish what is being written; callbacks still run."""
        with self._taking:
            self._closed = True
            self._box.close()

    # -- topics -------------------------------------------------------------------------------------------------------------

    def _subscribe_robot(self, contract: Contract) -> None:
        image_ns, state_ns = (int(1e9 / hz) for hz in (self._settings.image_rate_hz, self._settings.state_rate_hz))
        for source in (s for observation in contract.observations for s in observation.sources):
            # A publisher that keeps its last message gives it to those only who ask for it, reliably.
            latched = source.qos.durability == "transient_local"
            reliability = "reliable" if latched else "best_effort"
            picture = source.type in _PICTURES
            profile = qos.profile(reliability, source.qos.durability, 1 if picture else _DEPTH)
            how: dict[str, Any] = {
                "latched": latched,
                "picture": picture,
                "period_ns": image_ns if picture else state_ns,
            }
            self._subscribe(source.topic, source.type, profile, required=True, **how)
        best_effort = qos.profile("best_effort", "volatile", _DEPTH)
        for output in contract.outputs:
            self._subscribe(output.topic, output.type, best_effort)
        self._subscribe(contract.motion.topic, "std_msgs/msg/Bool", best_effort)
        if contract.instruction is not None:
            self._subscribe(contract.instruction.topic, contract.instruction.type, best_effort)

    def _subscribe_ours(self) -> None:
        policy, manager = self._settings.policy_node, self._settings.ota_manager
        now_s = time.monotonic
        latched, events = qos.LATCHED_EACH, qos.EVENTS
        self._subscribe(
            f"{policy}/status", "vla_ota/msg/PolicyStatus", latched, look=lambda m: self._triggers.status(m, now_s())
        )
        self._subscribe(
            f"{policy}/swap_report", "vla_ota/msg/SwapReport", latched, latched=True, look=self._triggers.report
        )
        self._subscribe(f"{manager}/status", "vla_ota/msg/ModelStatus", latched, latched=True)
        self._subscribe(f"{manager}/events", "vla_ota/msg/ModelEvent", events, look=self._triggers.event)
        self._subscribe("anomaly_score", "vla_ota/msg/AnomalyScore", qos.SCORES)
        self._subscribe("episode_outcome", "vla_ota/msg/EpisodeOutcome", events)

    def _subscribe(self, topic: str, kind: str, profile: QoSProfile, *, latched: bool = False, **how: Any) -> None:
        policy_node = self._settings.policy_node.rpartition("/")[2]
        name = self.resolve_topic_name(expand_topic_name(topic, policy_node, self.get_namespace()))
        if name in self._inputs:
            return
        recorded = Topic(name, kind, schema(kind), latched)
        if kind == "sensor_msgs/msg/Image":  # as image_transport names it
            kind_kept = "sensor_msgs/msg/CompressedImage"
            recorded = Topic(f"{name}/compressed", kind_kept, schema(kind_kept), latched)
        message = message_class(kind)
        subscription = self.create_subscription(
            message, name, lambda data: None, profile, callback_group=self._never, raw=True
        )
        self._inputs[name] = _Input(recorded, message, subscription, **how)

    # -- taking -------------------------------------------------------------------------------------------------------------

    def _take_all(self) -> None:
        with self._taking:
            if not self._closed:
                self._take_and_look(time.monotonic_ns())

    def _take_and_look(self, now_ns: int) -> None:
        records: list[Record] = []
        causes: list[Cause] = []
        for source in self._inputs.values():
            for record in self._take(source, now_ns):
                records.append(record)
                cause = source.look(deserialize_message(record.data, source.kind)) if source.look else None
                if cause is not None and record.published_ns >= self._began_ns:  # one that was kept for us is no event
                    causes.append(cause)
        for record in sorted(records, key=lambda r: r.received_ns):
            self._box.add(record, now_ns)
        if (silence := self._triggers.silence(now_ns / 1e9)) is not None:
            causes.append(silence)
        for cause in causes:
            self._box.trigger(cause, now_ns)
        while not self._asked.empty():
            asked = self._asked.get()
            try:
                asked.set_result(self._box.save(Cause("save", "a person asked for it"), now_ns))
            except RecorderError as e:
                asked.set_exception(e)
        self._box.tick(now_ns)

    def _take(self, source: _Input, now_ns: int) -> Iterator[Record]:
        if source.picture:
            if now_ns < source.due_ns:
                return  # the newest one is taken when its time has come
            source.due_ns = now_ns + source.period_ns
        while True:
            with source.subscription.handle:
                taken = source.subscription.handle.take_message(source.kind, True)
            if taken is None:
                return
            data, info = taken
            received_ns = info["received_timestamp"] or time.time_ns()
            source.count += 1
            since_ns = received_ns - source.kept_ns  # negative: the clock was set back
            if not source.picture and 0 <= since_ns < 0.9 * source.period_ns:
                continue
            source.kept_ns = received_ns
            kept = self._compress(source, data) if source.kind is Image else bytes(data)
            if kept is not None:
                yield Record(source.topic, received_ns, info["source_timestamp"] or received_ns, kept)

    def _compress(self, source: _Input, data: bytes) -> bytes | None:
        message = deserialize_message(data, Image)
        picture = jpeg(message, self._settings.jpeg_quality)
        if picture is None:
            source.unusable = str(message.encoding)
            return None
        return bytes(serialize_message(CompressedImage(header=message.header, format="jpeg", data=picture)))

    # -- what people ask ----------------------------------------------------------------------------------------------------

    def _save(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        asked: Future[Callable[[float], Path]] = Future()
        self._asked.put(asked)
        try:
            response.message = str(asked.result(_SAVE_S)(_SAVE_S))
            response.success = True
        except (RecorderError, TimeoutError) as e:
            response.message = str(e) or f"RECORDING_IO: not begun within {_SAVE_S:g} s"
        return response

    def _report(self) -> Report:
        box, shelf = self._box, self._shelf
        seconds, recordings = box.ring.seconds(time.monotonic_ns()), shelf.recordings()
        silent = [name for name, source in self._inputs.items() if source.required and not source.count]
        unusable = {name: source.unusable for name, source in self._inputs.items() if source.unusable}
        values = {
            "seconds": f"{seconds:.1f}",
            "memory_bytes": box.ring.bytes,
            "recordings": len(recordings),
            "disk_bytes": shelf.bytes,
            "last": box.last or (recordings[-1] if recordings else ""),
            "writing": box.writing or "",
            "dropped": box.dropped,
        }
        if box.error:
            return Report(WARN, f"nothing was recorded: {box.error}", values)
        if shelf.free_bytes <= 0:
            return Report(WARN, "DISK_FULL: no space is free beside min_free_bytes: nothing can be recorded", values)
        if unusable:
            name, encoding = next(iter(unusable.items()))
            return Report(WARN, f"{name}: pictures of encoding {encoding!r} are not recorded", values)
        if silent:
            return Report(WARN, f"nothing came yet on {', '.join(silent)}", values)
        doing = f"writing {box.writing.name}" if box.writing is not None else f"{len(recordings)} recordings on disk"
        return Report(OK, f"the last {seconds:.0f} s are in memory, {doing}", values)


def main() -> None:
    """Entry point of ``recorder``."""
    run_main(RecorderNode, "recorder", _ABOUT, [RecorderSettings], threads=2)


if __name__ == "__main__":
    main()
