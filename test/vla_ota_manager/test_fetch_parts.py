# SPDX-License-Identifier: Apache-2.0
"""A large file comes by several range requests at a time, each byte once, and by one where a server gives no ranges."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.downloads import Bench, wait_until_nothing_is_left_behind
from support.waits import wait_for

from vla_ota_manager.errors import CancelledError
from vla_ota_manager.store import parts
from vla_sim.checkpoint_server import Behaviour, CheckpointServer

PART = 64 << 10
DATA = os.urandom(5 * PART + 12_345)
RANGES = [f"bytes={start}-{start + PART - 1}" for start in range(0, 5 * PART, PART)] + [f"bytes={5 * PART}-"]
LAST = f"bytes={5 * PART}-{len(DATA) - 1}"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(tmp_path: Path, server: CheckpointServer, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(parts, "PART_BYTES", PART)
    return Bench(tmp_path / "robot", server, DATA)


@contextmanager
def fetching(bench: Bench) -> Iterator[None]:
    """Fetch beside what is done within, and be cancelled at its end."""

    def work() -> None:
        with pytest.raises(CancelledError):
            bench.fetch(read_timeout_s=300.0)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        bench.cancelled.set()
        thread.join(60.0)
        bench.cancelled.clear()
    assert not thread.is_alive()
    wait_until_nothing_is_left_behind()


def test_each_part_is_asked_for_once_and_nothing_is_left_beside_the_blob(bench: Bench) -> None:
    bench.fetch()
    assert bench.complete and bench.served == bench.received.count == len(DATA)
    assert sorted(map(str, bench.ranges)) == sorted([*RANGES[:-1], LAST])
    assert all(headers["if-range"] for _, headers in bench.server.requests[1:])
    assert [path.name for path in bench.blobs.partial_dir.iterdir()] == [bench.digest]


def test_parts_arrive_while_another_one_stalls_and_after_a_cancellation_only_the_rest_is_asked_for(
    bench: Bench,
) -> None:
    bench.server.behave(bench.path, Behaviour(stall_after=1000), times=1)
    with fetching(bench):
        wait_for(lambda: bench.there == len(DATA) - PART + 1000, "everything but the part that stalls")
    before = len(bench.ranges)
    bench.fetch()
    assert bench.complete and bench.served == len(DATA)
    assert bench.ranges[before:] == [f"bytes=1000-{PART - 1}"]


def test_no_part_is_asked_for_that_is_far_ahead_of_the_one_that_stalls(bench: Bench) -> None:
    bench.server.behave(bench.path, Behaviour(stall_after=0), times=1)
    with fetching(bench_of(bench, connections=2)):
        wait_for(lambda: bench.there == 3 * PART, "the parts in the window")
        assert bench.ranges == RANGES[:4]


def bench_of(bench: Bench, connections: int) -> Bench:
    """Let a bench's downloads have so many connections."""
    fetch = bench.fetch
    bench.fetch = lambda *urls, **settings: fetch(*urls, fetch_connections=connections, **settings)  # type: ignore[method-assign]
    return bench


def test_one_connection_asks_for_the_whole(bench: Bench) -> None:
    bench.fetch(fetch_connections=1)
    assert bench.complete and bench.ranges == [None]


def test_a_server_without_ranges_is_asked_once(bench: Bench) -> None:
    bench.server.behave(bench.path, Behaviour(ignore_range=True))
    bench.fetch()
    assert bench.complete and bench.served == len(DATA) and len(bench.ranges) == 1


def test_parts_that_are_cut_off_are_resumed_where_they_were_cut(bench: Bench) -> None:
    bench.server.behave(bench.path, Behaviour(fail_after=20_000), times=9)
    bench.fetch()
    assert bench.complete and bench.served == bench.received.count == len(DATA)


def test_shorter_parts_than_were_asked_for_are_kept(bench: Bench) -> None:
    bench.server.behave(bench.path, Behaviour(part=30_000))
    bench.fetch(retries=0)  # that is no failure
    assert bench.complete and bench.served == len(DATA)


def test_where_further_connections_are_refused_one_fetches_everything(bench: Bench) -> None:
    bench.server.behave(bench.path, Behaviour(), times=1)
    bench.server.behave(bench.path, Behaviour(status=503, retry_after="3600"), times=3)
    bench.fetch(retry_after_max_s=3600.0)
    assert bench.complete and bench.served == len(DATA)
    assert len(bench.ranges) == len(RANGES) + 3


class OneAfterTheOther(CheckpointServer):
    """Refuses with ``refusal`` whoever asks for what lies behind what it has sent so far; sends nothing before it has."""

    refusal = 0

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.refused: list[int] = []
        self._asked, self._once = threading.local(), threading.Event()

    def note(self, path: str, headers: dict[str, str]) -> None:
        super().note(path, headers)
        self._asked.start = int(headers.get("range", "bytes=0-").removeprefix("bytes=").split("-")[0])

    def take(self, path: str) -> Behaviour:
        if self._asked.start <= self.served[path]:
            return super().take(path)
        self.refused.append(self._asked.start)
        self._once.set()
        return Behaviour(status=self.refusal)

    def count(self, path: str, size: int) -> None:
        self._once.wait(60.0)
        super().count(path, size)


@pytest.fixture
def one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Bench, OneAfterTheOther]]:
    monkeypatch.setattr(parts, "PART_BYTES", PART)
    (tmp_path / "files").mkdir()
    with OneAfterTheOther(tmp_path / "files") as server:
        yield Bench(tmp_path / "robot", server, DATA), server


@pytest.mark.parametrize("refusal", [403, 404, 509])
def test_where_further_connections_are_refused_for_good_one_fetches_the_rest(
    one_after_the_other: tuple[Bench, OneAfterTheOther], refusal: int
) -> None:
    bench, server = one_after_the_other
    server.refusal = refusal
    bench.fetch(retries=0)
    assert bench.complete and bench.served == bench.received.count == len(DATA)
    assert 1 <= len(server.refused) == len(set(server.refused))  # asked once, and not again
    assert str(bench.ranges[-1]).endswith("-")  # in one request


def test_after_a_refusal_for_good_one_connection_goes_on_also_in_the_next_attempt(
    one_after_the_other: tuple[Bench, OneAfterTheOther],
) -> None:
    bench, server = one_after_the_other
    server.refusal = 403
    server.behave(bench.path, Behaviour(), times=1)
    server.behave(bench.path, Behaviour(fail_after=1000), times=3)
    bench.fetch()
    assert bench.complete and bench.served == len(DATA)
    assert len(server.refused) == len(set(server.refused))


def test_further_connections_that_are_refused_again_and_again_do_not_end_the_download(
    one_after_the_other: tuple[Bench, OneAfterTheOther],
) -> None:
    bench, server = one_after_the_other
    server.refusal = 503
    bench.fetch(retries=0)
    assert bench.complete and bench.served == len(DATA)


def test_when_every_connection_fails_the_download_does(bench: Bench) -> None:
    bench.server.behave(bench.path, Behaviour(fail_after=10), times=1)
    bench.server.behave(bench.path, Behaviour(status=503))
    assert bench.refused(retries=2).code == "HTTP_STATUS"
    assert bench.there == 10


def test_what_is_not_there_any_more_is_not_asked_for_again_and_again(bench: Bench) -> None:
    bench.server.behave(bench.path, Behaviour(), times=1)
    bench.server.behave(bench.path, Behaviour(status=404))
    assert bench.refused(retries=1000).code == "NOT_FOUND"


def test_a_file_that_changes_midway_is_not_glued_together(bench: Bench) -> None:
    bench.server.behave(bench.path, Behaviour(body=os.urandom(len(DATA))), times=1)
    bench.fetch()  # If-Range: the server sends the whole of the new one
    assert bench.complete


@pytest.mark.parametrize(
    "odd",
    [
        Behaviour(etag='"another"'),
        Behaviour(content_range=f"bytes 5-{PART - 1}/{len(DATA)}"),
        Behaviour(content_range="nonsense"),
        Behaviour(ignore_range=True),
        Behaviour(status=416),
        Behaviour(extra=b"x", chunked=True),
    ],
    ids=["another copy", "from elsewhere", "nonsense", "the whole", "refused", "longer than announced"],
)
@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_part_that_is_not_what_was_asked_for_is_never_written_and_one_connection_goes_on(
    bench: Bench, odd: Behaviour, first: int
) -> None:
    if first:
        bench.server.behave(bench.path, Behaviour(), times=first)
    bench.server.behave(bench.path, odd, times=1)
    bench.fetch()
    assert bench.complete


def test_without_a_validator_the_hash_notices_a_change_and_it_is_fetched_anew_once(bench: Bench) -> None:
    bench.server.behave(bench.path, Behaviour(body=os.urandom(len(DATA)), etag=""), times=1)
    bench.server.behave(bench.path, Behaviour(etag=""))
    bench.fetch()
    assert bench.complete and bench.served <= 2 * len(DATA)


def test_wrong_content_is_refused_at_once_and_leaves_nothing(bench: Bench) -> None:
    bench.server.behave(bench.path, Behaviour(body=os.urandom(len(DATA))))
    assert bench.refused().code == "BLOB_DIGEST_MISMATCH"
    assert bench.served == len(DATA) and not list(bench.blobs.partial_dir.iterdir())


def test_the_bandwidth_cap_holds_over_all_connections(bench: Bench) -> None:
    begun = time.monotonic()
    bench.fetch(bandwidth_bytes_s=len(DATA))
    assert time.monotonic() - begun >= 0.9


def test_a_mirror_is_asked_by_one_connection_and_what_it_lacks_by_several(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    with CheckpointServer(tmp_path / "mirror") as mirror:
        place = mirror.root / bench.path
        place.parent.mkdir(parents=True)
        place.write_bytes(DATA)
        mirror.behave(bench.path, Behaviour(fail_after=100_000), times=1)
        mirror.behave(bench.path, Behaviour(status=503))
        bench.fetch(mirror_url=mirror.base)
        assert [headers.get("range") for _, headers in mirror.requests] == [None, "bytes=100000-"]
        assert bench.complete and mirror.served[f"/{bench.path}"] + bench.served == len(DATA)
    assert len(bench.ranges) == 5


def test_after_a_reboot_only_what_was_flushed_of_each_part_is_relied_upon(bench: Bench) -> None:
    bench.server.behave(bench.path, Behaviour(stall_after=1000), times=1)
    with fetching(bench):
        wait_for(lambda: bench.there == len(DATA) - PART + 1000, "everything but the part that stalls")
    note = bench.blobs.partial_dir / f"{bench.digest}.note"
    document = json.loads(note.read_text())
    flushed = [500, PART, 0, 777, 0, 0]
    note.write_text(json.dumps({**document, "boot_id": "another", "flushed": 500, "parts": flushed}))
    partial = bench.blobs.partial(bench.digest)
    damaged = bytearray(partial.read_bytes())  # what a power loss may leave behind what was flushed
    for part, count in enumerate(flushed):
        damaged[part * PART + count : (part + 1) * PART] = bytes(len(damaged[part * PART + count : (part + 1) * PART]))
    partial.write_bytes(damaged)
    assert bench.there == sum(flushed)
    before = bench.served
    bench.fetch()
    assert bench.complete and bench.served - before == len(DATA) - sum(flushed)


@pytest.mark.parametrize("table", [b"", b"nonsense", bytes(8 * 6), b"\xff" * 48], ids=["empty", "odd", "zeros", "much"])
def test_a_damaged_table_costs_a_download_at_most(bench: Bench, table: bytes) -> None:
    bench.server.behave(bench.path, Behaviour(stall_after=1000), times=1)
    with fetching(bench):
        wait_for(lambda: bench.there == len(DATA) - PART + 1000, "everything but the part that stalls")
    (bench.blobs.partial_dir / f"{bench.digest}.parts").write_bytes(table)
    bench.fetch()
    assert bench.complete


# -- killed: processes, parts of their real length -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> bytes:
    return os.urandom(3 * parts.PART_BYTES + 1_000_000)


def run(bench: Bench, crash_at: str = "") -> int:
    job = {"folder": str(bench.folder), "url": bench.server.url(bench.path), "sha256": bench.digest}
    command = [
        sys.executable,
        "-m",
        "support.fetching",
        json.dumps({**job, "size": len(bench.data), "crash_at": crash_at}),
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'test'}"}
    return subprocess.run(command, cwd=ROOT, env=environment, timeout=120, check=False).returncode


@pytest.mark.parametrize(
    "crash_at", ["fetch.chunk:1", "fetch.chunk:25", "fetch.chunk:100", "partial_note.after_write:2"]
)
def test_killed_while_several_parts_arrive_no_byte_that_was_written_is_sent_again(
    tmp_path: Path, server: CheckpointServer, large: bytes, crash_at: str
) -> None:
    bench = Bench(tmp_path / "robot", server, large)
    assert run(bench, crash_at) == -signal.SIGKILL
    known = bench.blobs.info(bench.digest, len(large)).parts
    assert 0 < known.total < len(large)
    with bench.blobs.partial(bench.digest).open("rb") as file:
        for part, count in enumerate(known.there):
            file.seek(part * parts.PART_BYTES)
            assert file.read(count) == large[part * parts.PART_BYTES :][:count]
    wait_for(lambda: answering() == 0, "the end of what was sent to nobody")
    before = bench.served
    assert run(bench) == 0
    assert bench.complete and bench.served - before == len(large) - known.total


def answering() -> int:
    """Return how many connections the server still answers on."""
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_killed_with_parts_ahead_of_the_front_they_are_kept(
    tmp_path: Path, server: CheckpointServer, large: bytes
) -> None:
    bench = Bench(tmp_path / "robot", server, large)
    bench.server.behave(bench.path, Behaviour(stall_after=1 << 20), times=1)
    assert run(bench, "fetch.chunk:125") == -signal.SIGKILL
    known = bench.blobs.info(bench.digest, len(large)).parts
    assert known.front() <= 1 << 20 < known.total
    wait_for(lambda: answering() == 1, "the end of what was sent to nobody")  # one stalls, and sends nothing more
    before = bench.served
    assert run(bench) == 0
    assert bench.complete and bench.served - before == len(large) - known.total
