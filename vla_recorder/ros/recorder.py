# SPDX-License-Identifier: Apache-2.0
"""The node ``recorder``: the black box of one policy and the files of its episodes, in a process of its own.

It takes messages from its subscriptions ten times a second rather than being woken by each: a camera's pictures but the newest
are never looked at, and what is kept is kept as it came (in CDR). While an episode runs pictures are taken more often and kept as
the policy gets them. Topics of the robot are heard best effort, so that no publisher waits for the recorder.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from vla_learning.episodes.format import encode_image
from vla_policy_node.contract.model import Contract, load_contract
from vla_policy_node.decoding import Decoder
from vla_policy_node.errors import ObservationError
from vla_recorder.blackbox import BlackBox, Cause
from vla_recorder.episodes.episodes import Episodes
from vla_recorder.episodes.format import picture_topic
from vla_recorder.episodes.shelf import REFUSED, EpisodeShelf
from vla_recorder.episodes.upload import Uploader, upload_of
from vla_recorder.errors import RecorderError
from vla_recorder.pictures import jpeg, png
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
    "Records one policy as MCAP: each episode, and the last seconds when the robot holds, rolls back or loses a worker."
)
_TAKE_S = 0.1
_DEPTH = 200  # of a queue that is emptied every _TAKE_S
_SAVE_S = 30.0
_SEEN, _BEFORE, _BEFORE_NS = 3, 20, 1_000_000_000
"""Pictures kept of each camera for the file of an episode that begins: it may be heard of a few tenths of a second later."""
_COMPRESSED = "sensor_msgs/msg/CompressedImage"
_PICTURES = ("sensor_msgs/msg/Image", _COMPRESSED)


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
    hear: Callable[[Any, float], None] | None = None  # what it means for the episode
    boxed: bool = True  # kept in the black box
    happened: bool = False  # kept in the episode's file
    features: tuple[tuple[Topic, Decoder], ...] = ()  # of the policy that it is the picture of
    due_ns: int = 0  # when the next picture is taken, monotonic
    kept_ns: int = 0  # when the last one that was kept was received, wall clock
    seen: deque[tuple[bytes, int]] = field(default_factory=lambda: deque(maxlen=_SEEN))
    """Pictures that came last, as they came, and when they were received; while no episode runs."""
    before: deque[Record] = field(default_factory=lambda: deque(maxlen=_BEFORE))
    """Pictures that came last, as the policy gets them; while an episode runs."""
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
        self._uploader: Uploader | None = None
        self._episodes = self._make_episodes(contract, Path(settings.recording_dir).expanduser() / "episodes")
        self._episode: Path | None = None  # the file that has got its first pictures
        self._triggers = Triggers()
        self._taking, self._closed = threading.Lock(), False
        self._began_ns = time.time_ns()
        self._never = _NeverGroup()
        self._inputs: dict[str, _Input] = {}
        self._asked: queue.SimpleQueue[Future[Callable[[float], Path]]] = queue.SimpleQueue()
        self._subscribe_robot(contract)
        self._subscribe_ours()
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # also while simulated time stands still
        group = MutuallyExclusiveCallbackGroup()
        self.create_timer(_TAKE_S, self._take_all, callback_group=group, clock=steady)
        if self._episodes is not None:
            period_s = 1.0 / min(settings.episode_image_rate_hz, contract.rate_hz)  # more than a step's are no step's
            self.create_timer(period_s, self._take_pictures, callback_group=group, clock=steady)
        self.create_service(Trigger, "~/save", self._save, callback_group=ReentrantCallbackGroup())
        diagnostics = Diagnostics(self, lambda: contract.robot_type)
        diagnostics.add("black box", self._report)
        diagnostics.add("episodes", self._report_episodes)

    def close(self) -> None:
        """Finish what is being written; callbacks still run."""
        with self._taking:
            self._closed = True
            self._box.close()
            if self._uploader is not None:
                self._uploader.stop()
            if self._episodes is not None:
                self._episodes.close()

    def _make_episodes(self, contract: Contract, folder: Path) -> Episodes | None:
        settings = self._settings
        if not settings.episodes_max_disk_bytes:
            return None
        shelf = EpisodeShelf(folder, settings.episodes_max_disk_bytes, settings.min_free_bytes)
        shelf.recover()
        self._kept_episodes = shelf
        robot = self.get_namespace().strip("/").replace("/", ".") or socket.gethostname()
        limits = {"max_waiting_bytes": settings.max_memory_bytes, "max_file_bytes": settings.max_episode_bytes}
        episodes = Episodes(shelf, contract, robot, **limits)
        upload = upload_of(settings)
        if upload is not None:
            may = lambda: not (settings.upload_only_idle and episodes.running)  # noqa: E731
            self._uploader = Uploader(shelf, upload, may)
            self._uploader.start()
        return episodes

    # -- topics -------------------------------------------------------------------------------------------------------------

    def _subscribe_robot(self, contract: Contract) -> None:
        image_ns, state_ns = (int(1e9 / hz) for hz in (self._settings.image_rate_hz, self._settings.state_rate_hz))
        for observation, source in ((o, s) for o in contract.observations for s in o.sources):
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
            heard = self._subscribe(source.topic, source.type, profile, required=True, **how)
            if observation.is_image and self._episodes is not None:
                heard.features += ((picture_topic(observation.key), Decoder(source)),)
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
        tell: dict[str, Any] = {"happened": True}
        episodes = self._episodes
        self._subscribe(
            f"{policy}/status",
            "vla_ota/msg/PolicyStatus",
            latched,
            look=lambda m: self._triggers.status(m, now_s()),
            hear=episodes and episodes.status,
            **tell,
        )
        self._subscribe(
            f"{policy}/swap_report", "vla_ota/msg/SwapReport", latched, latched=True, look=self._triggers.report, **tell
        )
        self._subscribe(f"{manager}/status", "vla_ota/msg/ModelStatus", latched, latched=True)
        self._subscribe(f"{manager}/events", "vla_ota/msg/ModelEvent", events, look=self._triggers.event, **tell)
        self._subscribe("anomaly_score", "vla_ota/msg/AnomalyScore", qos.SCORES, **tell)
        outcome = episodes and episodes.outcome
        self._subscribe("episode_outcome", "vla_ota/msg/EpisodeOutcome", events, hear=outcome, **tell)
        if episodes is not None:
            self._subscribe(f"{policy}/steps", "vla_ota/msg/PolicySteps", events, hear=episodes.steps, boxed=False)

    def _subscribe(self, topic: str, kind: str, profile: QoSProfile, *, latched: bool = False, **how: Any) -> _Input:
        policy_node = self._settings.policy_node.rpartition("/")[2]
        name = self.resolve_topic_name(expand_topic_name(topic, policy_node, self.get_namespace()))
        if name in self._inputs:
            return self._inputs[name]
        recorded = Topic(name, kind, schema(kind), latched)
        if kind == "sensor_msgs/msg/Image":  # as image_transport names it
            recorded = Topic(f"{name}/compressed", _COMPRESSED, schema(_COMPRESSED), latched)
        message = message_class(kind)
        subscription = self.create_subscription(
            message, name, lambda data: None, profile, callback_group=self._never, raw=True
        )
        made = self._inputs[name] = _Input(recorded, message, subscription, **how)
        return made

    # -- taking -------------------------------------------------------------------------------------------------------------

    def _take_all(self) -> None:
        with self._taking:
            if not self._closed:
                self._take_and_look(time.monotonic_ns())

    def _take_and_look(self, now_ns: int) -> None:
        causes: list[Cause] = []
        taken = [(source, record) for source in self._inputs.values() for record in self._take(source, now_ns)]
        for source, record in sorted(taken, key=lambda pair: pair[1].received_ns):
            if source.boxed:
                self._box.add(record, now_ns)
            cause = self._heard(source, record, now_ns / 1e9) if source.look or source.hear else None
            if cause is not None and record.published_ns >= self._began_ns:  # one that was kept for us is no event
                causes.append(cause)
        self._begin_with_pictures()
        if (silence := self._triggers.silence(now_ns / 1e9)) is not None:
            causes.append(silence)
        for cause in causes:
            self._box.trigger(cause, now_ns)
        self._save_what_is_asked_for(now_ns)
        self._box.tick(now_ns)
        if self._episodes is not None:
            self._episodes.tick(now_ns / 1e9)

    def _save_what_is_asked_for(self, now_ns: int) -> None:
        while not self._asked.empty():
            asked = self._asked.get()
            try:
                asked.set_result(self._box.save(Cause("save", "a person asked for it"), now_ns))
            except RecorderError as e:
                asked.set_exception(e)

    def _begin_with_pictures(self) -> None:
        """Give a new episode what was seen before its first step."""
        writing = self._episodes.writing if self._episodes is not None else None
        if self._episodes is not None and writing not in (None, self._episode):
            for source in self._inputs.values():
                for record in source.before:
                    if time.time_ns() - record.received_ns < _BEFORE_NS:
                        self._episodes.add(record)
                while source.seen:
                    self._keep_in_episode(self._episodes, source, *source.seen.popleft())
        self._episode = writing

    def _heard(self, source: _Input, record: Record, now_s: float) -> Cause | None:
        """Tell the episodes of a message, and return whether it is worth a recording."""
        message = deserialize_message(record.data, source.kind)
        if source.hear is not None:
            source.hear(message, now_s)
        return source.look(message) if source.look is not None else None

    def _take_pictures(self) -> None:
        """Between two looks at all topics: the pictures of an episode that runs."""
        with self._taking:
            if self._closed or self._episodes is None or not self._episodes.running:
                return
            now_ns = time.monotonic_ns()
            for source in self._inputs.values():
                if source.features:
                    for record in self._take(source, now_ns):
                        self._box.add(record, now_ns)

    def _take(self, source: _Input, now_ns: int) -> Iterator[Record]:
        if source.picture and now_ns < source.due_ns and not source.features:
            return  # the newest one is taken when its time has come
        while True:
            with source.subscription.handle:
                taken = source.subscription.handle.take_message(source.kind, True)
            if taken is None:
                return
            data, info = taken
            received_ns = info["received_timestamp"] or time.time_ns()
            source.count += 1
            if self._episodes is not None and self._episodes.running:
                self._keep_in_episode(self._episodes, source, data, received_ns)
            elif source.features:
                source.seen.append((data, received_ns))
            since_ns = received_ns - source.kept_ns  # negative: the clock was set back
            if not source.picture and 0 <= since_ns < 0.9 * source.period_ns:
                continue
            if source.picture:
                if now_ns < source.due_ns:
                    continue
                source.due_ns = now_ns + source.period_ns
            source.kept_ns = received_ns
            kept = self._compress(source, data) if source.kind is Image else bytes(data)
            if kept is not None:
                yield Record(source.topic, received_ns, info["source_timestamp"] or received_ns, kept)

    def _keep_in_episode(self, episodes: Episodes, source: _Input, data: bytes, received_ns: int) -> None:
        """Put what happened into the open episode's file, and a picture as the policy gets it."""
        if source.happened:
            episodes.add(Record(source.topic, received_ns, received_ns, bytes(data)))
        if not source.features:
            return
        message = deserialize_message(data, source.kind)
        for feature, decoder in source.features:
            try:
                pixels = np.asarray(decoder.read(message), np.uint8)
            except ObservationError as e:
                episodes.dropped += 1
                self.get_logger().error(f"{e.code}: a picture is not recorded: {e}", throttle_duration_sec=5.0)
                continue
            picture = encode_image(received_ns, "png", png(pixels))
            record = Record(feature, received_ns, received_ns, picture)
            source.before.append(record)
            episodes.add(record)

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

    def _report_episodes(self) -> Report:
        episodes, uploader = self._episodes, self._uploader
        if episodes is None:
            return Report(OK, "off: episodes_max_disk_bytes is 0")
        kept = self._kept_episodes.kept()
        refused = sum(episode.refused for episode in kept)
        values: dict[str, object] = {
            "writing": episodes.writing or "",
            "kept": len(kept),
            "failures_and_corrections": sum(not episode.plain for episode in kept),
            "disk_bytes": sum(episode.size for episode in kept),
            "recorded": episodes.kept,
            "dropped": episodes.dropped,
            "uploaded": sum(episode.uploaded for episode in kept),
            "waiting": len(uploader.waiting(kept)) if uploader is not None else "",
            "refused": refused,
        }
        if episodes.error:
            return Report(WARN, f"the last episode was not recorded: {episodes.error}", values)
        if uploader is not None and uploader.problem:
            return Report(WARN, f"{values['waiting']} episodes wait to be uploaded: {uploader.problem}", values)
        if refused:
            return Report(WARN, f"the server refuses {refused} episodes; the reasons are in *{REFUSED}", values)
        doing = f"recording {episodes.writing.name}" if episodes.writing is not None else "no episode runs"
        return Report(OK, f"{doing}, {len(kept)} kept", values)


def main() -> None:
    """Entry point of ``recorder``."""
    run_main(RecorderNode, "recorder", _ABOUT, [RecorderSettings], threads=2)


if __name__ == "__main__":
    main()
