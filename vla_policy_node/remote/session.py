# SPDX-License-Identifier: Apache-2.0
"""One robot's generation on a host: a connection, a thread, a worker of the host's pool."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vla_checkpoint.errors import CheckpointError
from vla_checkpoint.manifest import FileEntry, Manifest
from vla_policy_node.errors import WorkerError, fault_of
from vla_policy_node.ipc.arena import Arena
from vla_policy_node.ipc.layouts import CHUNK_ERRORS, OBSERVATION_SLOTS, chunk_layout, observation_layout
from vla_policy_node.remote.cache import Cache, Claim
from vla_policy_node.remote.line import DATA_BYTES, Frame, Kind, Line, LineError, broken, parse
from vla_policy_node.remote.messages import (
    SILENCE_S,
    Record,
    features_of,
    number,
    observation_frame,
    spec_to_json,
    text,
)
from vla_policy_node.worker.api import Generation, PrepareError, WorkerEvent
from vla_policy_node.worker.pool import WorkerPool
from vla_ros.fault import Fault

LOG = logging.getLogger("vla_policy_node.remote")
_SLOT_WAIT_S = 15.0  # a generation whose robot vanished is still being ended
_WAIT_S = 1.0
_CHUNK_POLL_S = 0.001  # a chunk arrives without a wake-up
_TEXT_WAIT_S = 0.5  # what went wrong comes another way than the chunk that did not


class Session:
    """What happens on one connection, in :meth:`run`, until it is lost or the worker is."""

    def __init__(self, line: Line, pool: WorkerPool, cache: Cache, name: str) -> None:
        self._line, self._pool, self._cache, self._name = line, pool, cache, name
        self._frames: deque[Frame] = deque()
        self._events: queue.SimpleQueue[WorkerEvent] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._lost: LineError | None = None

    def note(self, event: WorkerEvent) -> None:
        """Take an event of the pool; on its watcher's thread."""
        self._events.put(event)
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Serve the connection, and close it."""
        try:
            self._line.send(Kind.HEARTBEAT)
            self._serve()
        except WorkerError as e:
            LOG.info("%s: %s: %s", self._name, e.code, e.message)
            self._say_failed(e.code, e.message)
        except Exception as e:
            LOG.exception("%s: the session has failed", self._name)
            self._say_failed("INTERNAL_ERROR", f"{type(e).__name__} on the worker host; its log says more")
        finally:
            self._line.close()

    def close(self) -> None:
        """Free what :meth:`note` uses; nobody may call it any more."""
        os.close(self._wake)

    def _say_failed(self, code: str, message: str) -> None:
        with contextlib.suppress(LineError):  # it may be the line that is lost
            self._line.send_json(Kind.FAILED, {"code": code, "message": message[:4000]})
            self._line.finish()

    def _serve(self) -> None:
        hello = parse(self._receive(Kind.HELLO))
        features = features_of(hello.get("features"))
        silence_s = number(hello, "silence_s", *SILENCE_S)
        self._line.heartbeat_s = silence_s / 4
        digest = text(hello, "digest")
        manifest = self._receive_manifest(digest)
        needed = [manifest] if manifest.base is None else [manifest, self._receive_manifest(manifest.base.digest)]
        LOG.info("%s: %s %s (%s)", self._name, manifest.name, manifest.version, digest[:12])
        observation = Arena.create(observation_layout(features, 1), OBSERVATION_SLOTS, "vla_ota_remote")
        try:
            with self._cache.claim(needed) as claim:
                generation = self._prepare(claim, digest, observation)
                try:
                    self._line.send_json(Kind.READY, _ready(generation))
                    self._line.tolerate(silence_s)
                    LOG.info("%s: %s %s is ready", self._name, manifest.name, manifest.version)
                    _Answering(self, generation, observation).run()
                finally:
                    self._pool.release(generation)
        finally:
            observation.close()

    # -- preparing

    def _prepare(self, claim: Claim, digest: str, observation: Arena) -> Generation:
        try:
            return self._load(self._receive_files(claim), digest, observation)
        except PrepareError as e:
            if fault_of(e.code) is not Fault.BUNDLE or not claim.drop_damaged(self._keep):
                raise
            LOG.warning(
                "%s: files in the cache were damaged, and are sent again: %s: %s", self._name, e.code, e.message
            )
        return self._load(self._receive_files(claim), digest, observation)

    def _receive_manifest(self, digest: str) -> Manifest:
        """Return a manifest that is what its digest says. Raises WorkerError."""
        data = bytes(self._receive(Kind.MANIFEST))
        if hashlib.sha256(data).hexdigest() != digest:
            raise WorkerError("DIGEST_BUNDLE", "the manifest's SHA-256 is not the digest that was named")
        try:
            return Manifest.parse(data)
        except CheckpointError as e:
            raise WorkerError(e.code, str(e)) from e

    def _receive_files(self, claim: Claim) -> Path:
        """Return the bundle's folder."""
        for entry in claim.missing():
            LOG.info("%s: receives %s (%d bytes)", self._name, entry.path, entry.size)
            claim.store(entry, self._parts(entry))
        return claim.assemble()

    def _load(self, folder: Path, digest: str, observation: Arena) -> Generation:
        end_s = time.monotonic() + _SLOT_WAIT_S
        while True:
            try:
                return self._pool.prepare(
                    folder,
                    digest=digest,
                    on_progress=self._say_progress,
                    cancelled=self._is_lost,
                    observation=observation,
                )
            except PrepareError as e:
                if self._lost is not None:
                    raise self._lost from e
                if (
                    e.code == "PREPARE_IN_PROGRESS"
                ):  # another robot's: this one ends its wait itself, at its load_timeout_s
                    end_s = time.monotonic() + _SLOT_WAIT_S
                elif e.code != "NO_FREE_SLOT" or time.monotonic() > end_s:
                    raise
            self._keep()
            self._line.wait(0.1)

    def _parts(self, entry: FileEntry) -> Iterator[bytearray]:
        left = entry.size
        if left:
            self._line.send_json(Kind.WANT, {"sha256": entry.sha256})
        while left:
            data = self._receive(Kind.DATA)
            if not 0 < len(data) <= min(left, DATA_BYTES):
                raise broken(f"{len(data)} bytes of a file that lacks {left}")
            left -= len(data)
            yield data

    def _receive(self, kind: Kind) -> bytearray:
        """Return the next frame, which must be of this kind. Raises LineError."""
        while not self._frames:
            self._line.wait(_WAIT_S)
            self._frames.extend(self._line.exchange())
        found, body = self._frames.popleft()
        if found is not kind:
            raise broken(f"a frame {found.name}, not {kind.name}")
        return body

    def _say_progress(self, state: str, fraction: float) -> None:
        try:
            self._line.send_json(Kind.PROGRESS, {"state": state, "fraction": fraction})
        except LineError as e:
            self._lost = e

    def _keep(self) -> None:
        """Keep the line. Raises LineError."""
        if self._is_lost() and self._lost is not None:
            raise self._lost

    def _is_lost(self) -> bool:
        """Keep the line; whether it is of no use any more."""
        try:
            for kind, _ in self._line.exchange():
                raise broken(f"a frame {kind.name} while a bundle is loaded")
        except LineError as e:
            self._lost = e
        return self._lost is not None

    # -- what answering needs

    def exchange(self, timeout_s: float) -> list[Frame]:
        """Wait for frames or events. Raises LineError."""
        self._line.wait(timeout_s, self._wake)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        return self._line.exchange()

    def events(self, generation: Generation) -> Iterator[WorkerEvent]:
        """Yield what the pool has said of a generation."""
        while not self._events.empty():
            event = self._events.get()
            if event.generation is generation:
                yield event

    @property
    def line(self) -> Line:
        """The connection."""
        return self._line


class _Answering:
    """Observations in, chunks out; one request at a time."""

    def __init__(self, session: Session, generation: Generation, observation: Arena) -> None:
        self._session, self._generation, self._observation = session, generation, observation
        spec, handle = generation.spec, generation.handle
        self._frame = observation_frame(spec.observation, spec.history)
        self._chunk = Record(chunk_layout(spec.horizon, spec.action_dim))
        self._requests, self._chunks = handle.attached()
        self._period_ns = int(1e9 / generation.manifest.action.rate_hz)
        fields = (f for f in observation.layout.fields if f.name.startswith("feature:"))
        self._nothing = {
            f.name: np.zeros(f.shape, f.dtype) for f in fields
        }  # of features that the policy does not look at
        self._asked, self._error_text, self._dead_s = 0, "", 0.0
        session.line.expect(Kind.OBSERVATION, self._frame.size)

    def run(self) -> None:
        """Answer until the line is lost (LineError), or the worker (WorkerError)."""
        try:
            while True:
                frames = self._session.exchange(_CHUNK_POLL_S if self._asked or self._dead_s else _WAIT_S)
                for kind, body in frames:
                    if kind is not Kind.OBSERVATION or self._asked:
                        raise broken(f"an unexpected frame {kind.name}")
                    self._ask(body)
                self._listen()
                if self._asked:
                    self._answer()
        finally:
            self._requests.close()
            self._chunks.close()

    def _ask(self, body: bytearray) -> None:
        """Write what the policy is shown as if it had been observed here, now and the periods before."""
        record = self._frame.views(memoryview(body))
        now_ns, history = time.monotonic_ns(), self._generation.spec.history
        for n in range(history):
            shown = {name: view[n] for name, view in record.items() if name in self._nothing}
            head: dict[str, Any] = {
                "stamp_ns": now_ns,
                "written_ns": now_ns - (history - 1 - n) * self._period_ns,
                "valid": 1,
                "measured": np.nan,
                "measured_ns": 0,
                "motion_ns": 0,
                "instruction": record["instruction"],
                "episode": record["episode"],
            }
            self._observation.write({**head, **self._nothing, **shown})
        self._asked = int(record["request"])
        if self._asked == 0:
            raise broken("request 0")
        self._requests.write({"request": self._asked, "tick": 0, "reset": int(record["reset"])})
        os.eventfd_write(self._generation.handle.eventfd, 1)

    def _listen(self) -> None:
        for event in self._session.events(self._generation):
            if event.kind == "LOST":
                raise WorkerError(event.code, event.message)
            if event.kind == "CHUNK_ERROR":
                self._error_text = event.message
        if self._generation.alive:
            return
        now_s = time.monotonic()  # what it died of comes with its event, a moment later
        self._dead_s = self._dead_s or now_s
        if now_s - self._dead_s > _TEXT_WAIT_S:
            raise WorkerError("WORKER_DIED", f"worker {self._generation.pid} has ended")

    def _answer(self) -> None:
        read = self._chunks.read()
        if read is None or int(read[1]["request"]) != self._asked:
            return
        error = CHUNK_ERRORS[int(read[1]["error"])]
        line = self._session.line
        if error:
            end_s = time.monotonic() + _TEXT_WAIT_S
            while not self._error_text and time.monotonic() < end_s:
                self._session.exchange(_TEXT_WAIT_S)
                self._listen()
            found = {"request": self._asked, "error": error, "text": self._error_text[-4000:]}
            line.send_json(Kind.NO_CHUNK, found)
        else:
            line.send(Kind.CHUNK, self._chunk.fill(read[1]))
        self._asked, self._error_text = 0, ""


def _ready(generation: Generation) -> dict[str, Any]:
    timings = generation.timings
    seconds = {
        "load": timings.load_s,
        "digest": timings.digest_s,
        "golden": timings.golden_s,
        "warm_up": timings.warm_up_s,
    }
    return {**spec_to_json(generation.spec), "seconds": seconds, "golden_difference": timings.golden_difference}
