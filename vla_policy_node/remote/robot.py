# SPDX-License-Identifier: Apache-2.0
"""The robot's end: a policy that is somewhere else. It lives in a worker like any other, which holds no weights and no torch.

So shadow, requests, resets, ages and the chunk's stamps are the worker's own: its warm-up and each ``inference_ns`` are round
trips, and a lost line is a lost worker.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from vla_policy_node.errors import WorkerError
from vla_policy_node.ipc.layouts import CHUNK_ERRORS, chunk_layout
from vla_policy_node.policies.base import FeatureSpec, FloatArray, Observation, PolicySpec
from vla_policy_node.remote.line import DATA_BYTES, Frame, Kind, Line, broken, connect, parse
from vla_policy_node.remote.messages import (
    Record,
    encoded,
    features_to_json,
    number,
    observation_frame,
    spec_of,
    text,
)
from vla_policy_node.worker.api import HOST_LOST, HOST_LOST_STATUS
from vla_policy_node.worker.inference import FEATURE, ChunkError
from vla_policy_node.worker.loading import is_code

Progress = Callable[[str, float], None]
"""Called with a state and the share of the whole that is done, 0 to 1."""

_STATES = ("LOADING", "DIGEST", "GOLDEN", "WARM_UP")
_PARTS = ("load", "digest", "golden", "warm_up")
_UPLOAD_SHARE = 0.3  # of the whole progress
_WAIT_S = 1.0


class RemotePolicy:
    """A policy on a host, as a worker sees it. Once the line is lost, the process ends: the node then holds."""

    def __init__(self, line: Line, ready: Mapping[str, Any], spec: PolicySpec) -> None:
        self.spec = spec
        self.seconds = {part: number(ready["seconds"], part, 0.0, 1e6) for part in _PARTS}
        """What the host's part of the preparation took [s]."""
        self.golden_difference = number(ready, "golden_difference", 0.0, 1e300)
        self._line, self._lock = line, threading.Lock()
        self._frame = Record(observation_frame(spec.observation, spec.history))
        self._chunk = chunk_layout(spec.horizon, spec.action_dim)
        line.expect(Kind.CHUNK, self._chunk.size)
        self._asked, self._episode, self._reset = 0, 0, False
        threading.Thread(target=self._keep, name="line", daemon=True).start()

    def reset(self) -> None:
        """Let the policy be reset before the next chunk, which sees another episode's observations."""
        self._episode, self._reset = self._episode + 1, True

    def predict_chunk(self, observation: Observation, instruction: str) -> FloatArray:
        """Return what the host answers. Raises ChunkError."""
        self._asked += 1
        values: dict[str, Any] = {
            "request": self._asked,
            "reset": self._reset,
            "episode": self._episode,
            "instruction": encoded(instruction),
        }
        shown = {FEATURE + k: np.reshape(observation[k], (-1, *v.shape)) for k, v in self.spec.observation.items()}
        body = self._frame.fill(values | shown)
        try:
            with self._lock:
                self._line.send(Kind.OBSERVATION, body)
                while True:
                    self._line.wait(_WAIT_S)
                    for frame in self._line.exchange():
                        self._reset = False
                        return self._answer(frame)
        except WorkerError as e:
            _end(e)

    def _answer(self, frame: Frame) -> FloatArray:
        kind, body = frame
        if kind is Kind.CHUNK:
            record = self._chunk.views(memoryview(body))
            if int(record["request"]) != self._asked:
                raise broken("a chunk that was not asked for")
            return record["actions"]
        if kind is not Kind.NO_CHUNK:
            raise _failure(frame)
        document = parse(body)
        error = text(document, "error")
        if document.get("request") != self._asked or error not in CHUNK_ERRORS[1:]:
            raise broken("an error that was not asked for")
        raise ChunkError(error, text(document, "text"))

    def _keep(self) -> None:
        """Keep the line while nothing is asked."""
        poll = select.poll()
        poll.register(self._line.fileno(), select.POLLIN)
        try:
            while True:
                poll.poll(self._line.heartbeat_s * 1e3)
                with self._lock:
                    for frame in self._line.exchange():
                        raise _failure(frame)
        except WorkerError as e:
            _end(e)


def open_policy(
    remote: Mapping[str, Any], bundle_dir: Path, features: Mapping[str, FeatureSpec], progress: Progress
) -> RemotePolicy:
    """Let a host load a bundle; what it lacks of its files is sent. Blocks.

    Args:
        remote: ``host``, ``tls``, ``silence_s``, ``digest``, and of an adapter ``base_dir`` (see ``plan.py``).
        bundle_dir: the bundle, opened and checked by the node.
        features: what the robot observes.
        progress: called on this thread.

    Raises:
        WorkerError: of the line, or what the host says, with its code.
    """
    manifest = _read(bundle_dir / "manifest.json")
    if hashlib.sha256(manifest).hexdigest() != remote["digest"]:
        raise WorkerError("DIGEST_BUNDLE", f"{bundle_dir / 'manifest.json'} has changed")
    line = connect(remote["host"], remote["tls"])
    try:
        line.heartbeat_s = remote["silence_s"] / 4
        hello = {"digest": remote["digest"], "silence_s": remote["silence_s"], "features": features_to_json(features)}
        line.send_json(Kind.HELLO, hello)
        folders = {bundle_dir: manifest}
        if remote["base_dir"]:
            folders[Path(remote["base_dir"])] = _read(Path(remote["base_dir"], "manifest.json"))
        for data in folders.values():
            line.send(Kind.MANIFEST, data)
        files = {
            file["sha256"]: (folder, file) for folder, data in folders.items() for file in json.loads(data)["files"]
        }
        ready = _Upload(line, files, progress).follow()
        spec = spec_of(ready)
        if not isinstance(ready.get("seconds"), dict):
            raise broken("no seconds")
        line.tolerate(remote["silence_s"])
        return RemotePolicy(line, ready, spec)
    except BaseException:
        line.close()
        raise


class _Upload:
    """Answers what a host asks for until it is ready."""

    def __init__(self, line: Line, files: Mapping[str, tuple[Path, dict[str, Any]]], progress: Progress) -> None:
        """``files``: by SHA-256, the bundle's folder and the manifest's entry."""
        self._line, self._files, self._progress = line, files, progress
        self._total, self._sent = sum(file["size"] for _, file in files.values()) or 1, 0
        self._frames: deque[Frame] = deque()

    def follow(self) -> dict[str, Any]:
        """Return the host's READY."""
        while True:
            while not self._frames:
                self._line.wait(_WAIT_S)
                self._frames.extend(self._line.exchange())
            frame = self._frames.popleft()
            kind, body = frame
            if kind is Kind.READY:
                return parse(body)
            if kind is Kind.WANT:
                self._send(text(parse(body), "sha256"))
            elif kind is Kind.PROGRESS:
                document = parse(body)
                state, fraction = text(document, "state"), number(document, "fraction", 0.0, 1.0)
                if state in _STATES:
                    self._progress(state, _UPLOAD_SHARE + (1.0 - _UPLOAD_SHARE) * fraction)
            else:
                raise _failure(frame)

    def _send(self, digest: str) -> None:
        if digest not in self._files:
            raise broken("a file is wanted that the bundle does not have")
        folder, file = self._files[digest]
        path, left = folder / file["path"], int(file["size"])
        try:
            with path.open("rb") as opened:
                while left:
                    data = opened.read(min(DATA_BYTES, left))
                    if not data:
                        raise WorkerError("LOAD_FAILED", f"{path}: it is shorter than the manifest says")
                    self._line.send(Kind.DATA, data)
                    left -= len(data)
                    self._sent += len(data)
                    self._progress("LOADING", _UPLOAD_SHARE * min(1.0, self._sent / self._total))
                    self._drain()
        except OSError as e:
            raise WorkerError("LOAD_FAILED", f"{path}: {e.strerror}") from e

    def _drain(self) -> None:
        """Wait until most is sent; the host may say meanwhile that it will not have it."""
        while True:
            for frame in self._line.exchange():
                if frame[0] is Kind.FAILED:
                    raise _failure(frame)
                self._frames.append(frame)
            if self._line.queued <= DATA_BYTES:
                return
            self._line.wait(_WAIT_S)


def _failure(frame: Frame) -> WorkerError:
    """Return the error that a host's FAILED stands for; for any other frame, that it should not have come."""
    kind, body = frame
    if kind is not Kind.FAILED:
        return broken(f"an unexpected frame {kind.name}")
    document = parse(body)
    code = text(document, "code")
    return WorkerError(code, f"worker host: {text(document, 'message')}") if is_code(code) else broken("no code")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise WorkerError("LOAD_FAILED", f"{path}: {e.strerror}") from e


def _end(error: WorkerError) -> NoReturn:
    """End the process, which is the worker; its last line says why."""
    sys.stderr.write(f"{error.code}: {error.message}\n")
    sys.stderr.flush()
    os._exit(HOST_LOST_STATUS if error.code == HOST_LOST else 1)
