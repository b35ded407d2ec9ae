# SPDX-License-Identifier: Apache-2.0
"""Sends episodes to the fleet server, piece by piece: what has arrived is never sent again, whoever was restarted meanwhile.

``GET /v1/robot/episodes/<sha256>`` says how much is there, ``PUT …?offset=&total_bytes=`` adds to it. An episode that was sent or
that the server refuses for good is marked beside its file.
"""

from __future__ import annotations

import hashlib
import logging
import random
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from vla_recorder.episodes.shelf import REFUSED, UPLOADED, EpisodeShelf, Kept
from vla_recorder.settings import ALL, FAILURES, RecorderSettings

LOG = logging.getLogger("vla_recorder")

_PIECE_BYTES = 1 << 20
_LOOK_S = 5.0  # between two looks for new episodes
_LONGEST_WAIT_S = 600.0
"""What has waited so long for a good time is sent at any time [s]: a robot may work all day without a pause."""
_FIRST_RETRY_S, _LONGEST_RETRY_S = 5.0, 600.0
_CONNECT_S, _ANSWER_S = 10.0, 60.0
_FINAL = (413, 422)
"""The server will never take this file: too large, or no episode."""
_MOST_SETBACKS = 3


class LaterError(Exception):
    """It did not work; it may later. ``wait_s``: the server's wish [s]."""

    def __init__(self, text: str, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class RefusedError(Exception):
    """The server will not take this file, today or later."""


@dataclass(frozen=True)
class Upload:
    """How and what is uploaded."""

    server: str  # http(s)://host[:port]
    token_file: Path  # the robot's, kept by fleet_bridge, which may write a new one at any time
    ca_file: str = ""  # certificate authority of the server, if this machine does not know it
    what: str = FAILURES  # or ALL
    bandwidth_bytes_s: int = 0  # 0 = no bound


def upload_of(settings: RecorderSettings) -> Upload | None:
    """Return how a recorder's episodes are uploaded; ``None``: not at all."""
    if not settings.server:
        return None
    server = settings.server.rstrip("/").replace("ws", "http", 1)
    token = Path(settings.state_dir).expanduser() / "token"
    return Upload(server, token, settings.ca_file, settings.upload, settings.upload_bandwidth_bytes_s)


class Sender:
    """Sends files of one kind, piece by piece.

    Args:
        upload: how.
        kind: as the server's addresses name it, for example ``episodes``.
    """

    def __init__(self, upload: Upload, kind: str) -> None:
        self._upload, self._kind = upload, kind
        self._session = requests.Session()
        self._session.trust_env = False  # no proxies, credentials or certificates that nobody configured here

    def send(self, path: Path, may: Callable[[], bool], pause: Callable[[float], None]) -> bool:
        """Send a file.

        Args:
            path: of it.
            may: whether this is a good time, asked before each piece.
            pause: waits [s], for the bound of the bandwidth.

        Returns:
            Whether the server has all of it; false: it was left for later.

        Raises:
            LaterError, requests.RequestException, OSError: not now.
            RefusedError: the server will never take it.
        """
        with path.open("rb") as file:
            sha256, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
            received, complete = self.ask("GET", sha256)
            setbacks, before = 0, -1
            while not complete:
                setbacks += received <= before
                if setbacks >= _MOST_SETBACKS or not 0 <= received <= size:
                    raise LaterError(f"the server has {received} of {size} bytes of {path.name}, and takes no more")
                if not may():
                    return False
                file.seek(received)
                piece, before = file.read(self._piece_bytes), received
                received, complete = self.ask("PUT", sha256, piece, {"offset": before, "total_bytes": size})
                if self._upload.bandwidth_bytes_s:
                    pause(len(piece) / self._upload.bandwidth_bytes_s)
        return True

    @property
    def _piece_bytes(self) -> int:
        """With a bound, no more than it allows in a second."""
        return min(_PIECE_BYTES, self._upload.bandwidth_bytes_s or _PIECE_BYTES)

    def ask(self, method: str, sha256: str, data: bytes | None = None, query: Any = None) -> tuple[int, bool]:
        """Return how much the server has of a file, and whether that is all. Raises LaterError, RefusedError."""
        reply = self._session.request(
            method,
            f"{self._upload.server}/v1/robot/{self._kind}/{sha256}",
            params=query,
            data=data,
            headers={"Authorization": f"Bearer {self._token()}"},
            timeout=(_CONNECT_S, _ANSWER_S),
            allow_redirects=False,
            verify=self._upload.ca_file or ssl.get_default_verify_paths().cafile or True,
        )
        try:
            answer = reply.json()
        except ValueError:
            answer = {}
        answer = answer if isinstance(answer, dict) else {}
        received = answer.get("received_bytes")
        if reply.status_code in (200, 409) and type(received) is int:
            return received, reply.status_code == 200 and answer.get("complete") is True
        said = f"{answer.get('error_code', '')} {answer.get('message', '')}".strip() or reply.reason
        text = f"{self._upload.server} answered {reply.status_code}: {said}"
        if reply.status_code in _FINAL:
            raise RefusedError(text)
        wait_s = reply.headers.get("Retry-After", "")
        raise LaterError(text, min(float(wait_s), _LONGEST_RETRY_S) if wait_s.isdecimal() else 0.0)

    def _token(self) -> str:
        try:
            token = self._upload.token_file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            token = ""
        if not token:
            raise LaterError(
                f"NOT_ENROLLED: {self._upload.token_file} holds no token: fleet_bridge has not enrolled yet"
            )
        return token


class Uploading(threading.Thread, ABC):
    """Looks again and again for what to upload until :meth:`stop`; after a fault later, and later each time.

    Args:
        upload: how.
        kind: of files, as the server's addresses name it.
    """

    def __init__(self, upload: Upload, kind: str) -> None:
        super().__init__(name=f"upload of {kind}", daemon=True)
        self._kind, self._stopping, self._failures = kind, threading.Event(), 0
        self._sender = Sender(upload, kind)
        self.problem = ""
        """Why the last attempt failed; empty = it did not."""

    @abstractmethod
    def look(self) -> None:
        """Upload what there is. Raises LaterError, requests.RequestException, OSError: not now."""

    def stop(self) -> None:
        """End after the piece that is on its way."""
        self._stopping.set()
        if self.is_alive():
            self.join(2.0)

    def run(self) -> None:
        """See the class."""
        while not self._stopping.is_set():
            wait_s = _LOOK_S
            try:
                self.look()
            except (LaterError, requests.RequestException, OSError) as e:
                self._failed(" ".join(str(e).split()))
                wait_s = max(retry_after_s(self._failures), getattr(e, "wait_s", 0.0))
            except Exception as e:  # a defect; the robot works on
                LOG.exception("upload failed")
                self._failed(f"{type(e).__name__}: {e}")
                wait_s = _LONGEST_RETRY_S
            self._pause(wait_s)

    def _send(self, path: Path, may: Callable[[], bool]) -> bool:
        """Send a file, as ``Sender.send``."""
        done = self._sender.send(path, lambda: not self._stopping.is_set() and may(), self._pause)
        self._went_well()
        return done

    def _went_well(self) -> None:
        self._failures, self.problem = 0, ""

    def _failed(self, problem: str) -> None:
        if not self.problem:
            LOG.warning("%s are not uploaded: %s", self._kind, problem)
        self._failures, self.problem = self._failures + 1, problem

    def _pause(self, seconds: float) -> None:
        self._stopping.wait(seconds)


class Uploader(Uploading):
    """Uploads episodes.

    Args:
        shelf: of the episodes.
        upload: how.
        may: whether this is a good time to send, asked before each piece. Nothing waits for one longer than ten minutes.
    """

    def __init__(self, shelf: EpisodeShelf, upload: Upload, may: Callable[[], bool]) -> None:
        super().__init__(upload, "episodes")
        self._shelf, self._upload, self._may = shelf, upload, may
        self._since: dict[Path, float] = {}  # when each was first seen waiting, monotonic [s]
        self.uploaded = 0
        """Since the start."""

    def waiting(self, kept: Sequence[Kept]) -> list[Path]:
        """Return which of these are still to be sent: failures and corrections first, the oldest first."""
        left = [(e.plain, e.path.name, e.path) for e in kept if not (e.uploaded or e.refused)]
        return [path for plain, _, path in sorted(left) if self._upload.what == ALL or not plain]

    def look(self) -> None:
        """See Uploading."""
        waiting, now_s = self.waiting(self._shelf.kept()), time.monotonic()
        self._since = {path: self._since.get(path, now_s) for path in waiting}
        for path in waiting:
            if self._stopping.is_set():
                break
            if self._good_time(path):
                self._upload_one(path)

    def _good_time(self, path: Path) -> bool:
        return self._may() or time.monotonic() - self._since[path] >= _LONGEST_WAIT_S

    def _upload_one(self, path: Path) -> None:
        try:
            if not self._send(path, lambda: self._good_time(path)):
                return
            self._shelf.mark(path, UPLOADED)
            self.uploaded += 1
            LOG.info("%s is uploaded", path.name)
        except FileNotFoundError:  # it has made room for others
            pass
        except RefusedError as e:
            LOG.error("%s is refused, and stays here: %s", path.name, e)
            self._shelf.mark(path, REFUSED, f"{e}\n")
            self._went_well()


def retry_after_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row [s]: longer each time, and not every robot at once."""
    longest = min(_FIRST_RETRY_S * 2.0 ** min(max(failures - 1, 0), 30), _LONGEST_RETRY_S)
    return random.uniform(0.5, 1.0) * longest
