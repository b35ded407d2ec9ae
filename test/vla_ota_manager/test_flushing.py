# SPDX-License-Identifier: Apache-2.0
"""A download is flushed while more of it arrives, and a note never says more than what is on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.downloads import Bench
from support.waits import wait_for

from vla_checkpoint.scan import FileScan
from vla_ota_manager.errors import StoreError
from vla_ota_manager.fetch import flushing, http
from vla_ota_manager.store import parts
from vla_ota_manager.store.filesystem import Filesystem
from vla_sim.checkpoint_server import Behaviour, CheckpointServer

CHUNK, FLUSH, PART = 4 << 10, 32 << 10, 64 << 10
DATA = os.urandom(10 * FLUSH)


class SlowDisk(Filesystem):
    """A disk that flushes downloads slowly, and remembers what; from its ``full_at``-th flush of one on it is full."""

    def __init__(self, partial: Path, full_at: int = 10**6) -> None:
        self.flushed, self.flushes, self._partial, self._full_at = b"", 0, partial, full_at

    def _flush(self, fd: int, path: Path) -> None:
        if path != self._partial:
            super()._flush(fd, path)
            return
        content = path.read_bytes()
        time.sleep(0.02)
        super()._flush(fd, path)
        self.flushes += 1
        if self.flushes >= self._full_at:
            raise StoreError("DISK_FULL", "no space left", str(path))
        self.flushed = content


@pytest.fixture(params=[1, 4], ids=["one connection", "several"])
def bench(request: Any, tmp_path: Path, server: CheckpointServer, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for module, name, value in (
        (http, "CHUNK_BYTES", CHUNK),
        (flushing, "FLUSH_BYTES", FLUSH),
        (parts, "PART_BYTES", PART),
    ):
        monkeypatch.setattr(module, name, value)
    bench = Bench(tmp_path / "robot", server, DATA)
    fetch = bench.fetch
    bench.fetch = lambda *urls, **settings: fetch(*urls, fetch_connections=request.param, **settings)  # type: ignore[method-assign]
    return bench


def noted(bench: Bench) -> list[tuple[int, int]]:
    """Where what a power loss leaves begins and ends."""
    note = json.loads((bench.blobs.partial_dir / f"{bench.digest}.note").read_bytes())
    return (
        [(i * PART, i * PART + count) for i, count in enumerate(note["parts"])]
        if "parts" in note
        else [(0, note["flushed"])]
    )


def test_bytes_arrive_while_the_disk_flushes_and_no_note_is_ahead_of_it_nor_far_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = bench.blobs.fs = SlowDisk(bench.blobs.partial(bench.digest))
    beside: list[int] = []

    def look(there: int) -> None:
        spans = noted(bench)
        assert all(disk.flushed[start:end] == DATA[start:end] for start, end in spans)
        lost = there - sum(end - start for start, end in spans)
        assert lost <= 2 * (FLUSH + CHUNK)
        beside.append(lost)

    monkeypatch.setattr(bench, "_on_progress", look)
    bench.fetch()
    assert bench.complete and disk.flushes >= len(DATA) // (FLUSH + CHUNK)
    assert max(beside) > FLUSH


def test_a_flush_that_fails_beside_what_arrives_ends_the_download_with_its_code_and_it_goes_on_later(
    bench: Bench,
) -> None:
    disk = bench.blobs.fs = SlowDisk(bench.blobs.partial(bench.digest), full_at=4)
    assert bench.refused().code == "DISK_FULL"
    spans = noted(bench)
    assert sum(end - start for start, end in spans) > 0
    assert all(disk.flushed[start:end] == DATA[start:end] for start, end in spans)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vla_ota_flush")]
    wait_for(lambda: not answering(), "the end of what was sent to nobody")
    bench.blobs.fs = Filesystem()
    there, before = bench.there, bench.served
    bench.fetch()
    assert bench.complete and bench.served - before == len(DATA) - there


def answering() -> int:
    """Return how many connections the server still answers on."""
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_what_was_in_a_safetensors_file_is_known_when_it_is_there_however_often_its_download_was_cut(
    bench: Bench,
) -> None:
    header = b'{"w":{"dtype":"U8","shape":[200000],"data_offsets":[0,200000]}}'
    data = len(header).to_bytes(8, "little") + header + DATA[:200_000]
    digest = hashlib.sha256(data).hexdigest()
    path = f"blobs/sha256/{digest}"
    (bench.server.root / path).write_bytes(data)
    arguments = {"size": len(data), "digest": digest}
    for cut in (5, 40, 30_000):
        bench.server.behave(path, Behaviour(fail_after=cut), times=1)
        bench.server.behave(path, Behaviour(status=503))
        bench.refused(bench.server.url(path), **arguments, retries=0)
        assert not bench.arrived
        bench.server.be_good()
    bench.fetch(bench.server.url(path), **arguments)
    found = bench.arrived[digest]
    assert found.scan == FileScan(digest, {"w": hashlib.sha256(DATA[:200_000]).hexdigest()}, {})
    assert found.is_still(bench.blobs.blob(digest))
    bench.fetch()
    assert bench.arrived[bench.digest].scan == FileScan(bench.digest, {}, {})
