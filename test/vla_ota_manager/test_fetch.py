# SPDX-License-Identifier: Apache-2.0
"""A download ends with exactly the promised bytes or with a code, against a server that does everything wrong."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading
import time
import tracemalloc
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path

import pytest
from support.downloads import Bench, wait_until_nothing_is_left_behind
from support.waits import wait_for

from vla_ota_manager.config import OtaConfig
from vla_ota_manager.errors import CancelledError, FetchError
from vla_ota_manager.fetch import fetcher
from vla_ota_manager.fetch.fetcher import Fetcher, Received
from vla_ota_manager.fetch.source import parse_url
from vla_sim.checkpoint_server import Behaviour, CheckpointServer

DATA = os.urandom(300_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
PATH = f"blobs/sha256/{DIGEST}"


@pytest.fixture
def bench(tmp_path: Path, server: CheckpointServer) -> Bench:
    return Bench(tmp_path / "robot", server, DATA)


def test_a_blob_arrives_read_only_and_is_not_fetched_again(bench: Bench) -> None:
    bench.fetch()
    assert bench.complete and bench.blobs.blob(DIGEST).stat().st_mode & 0o222 == 0
    assert bench.received.count == len(DATA)
    assert bench.server.requests[0][1]["accept-encoding"] == "identity"


def test_a_cut_connection_is_resumed_where_it_was_cut(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(fail_after=100_000), times=1)
    bench.server.behave(PATH, Behaviour(fail_after=50_000), times=1)
    bench.fetch()
    assert bench.complete and bench.server.served[f"/{PATH}"] == len(DATA)
    ranges = [headers.get("range") for _, headers in bench.server.requests]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert all("if-range" in headers for _, headers in bench.server.requests[1:])


def test_attempts_that_make_progress_are_not_counted_as_failures(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(fail_after=20_000), times=12)
    bench.fetch(retries=2)
    assert bench.complete and bench.server.served[f"/{PATH}"] == len(DATA)


def test_without_progress_the_retries_end(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(status=503))
    assert bench.refused(retries=3).code == "HTTP_STATUS"
    assert len(bench.server.requests) == 4


def test_a_server_that_ignores_ranges_begins_anew(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(fail_after=100_000), times=1)
    bench.server.behave(PATH, Behaviour(ignore_range=True))
    bench.fetch()
    assert bench.complete and bench.received.count == 100_000 + len(DATA)


def test_a_file_that_changed_meanwhile_is_not_glued_together(bench: Bench) -> None:
    other = os.urandom(len(DATA))
    bench.server.behave(PATH, Behaviour(body=other, fail_after=100_000), times=1)
    bench.fetch()  # If-Range: the server sends the whole of the new one
    assert bench.complete


def test_without_a_validator_the_hash_notices_the_change_and_it_is_fetched_anew_once(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(body=os.urandom(len(DATA)), fail_after=100_000, etag=""), times=1)
    bench.server.behave(PATH, Behaviour(etag=""))
    bench.fetch()
    assert bench.complete
    assert [headers.get("range") for _, headers in bench.server.requests] == [None, "bytes=100000-", None]


@pytest.mark.parametrize(
    "odd",
    [
        Behaviour(content_range="bytes 5-299999/300000"),
        Behaviour(content_range="bytes 100000-200000/*"),
        Behaviour(content_range="nonsense"),
        Behaviour(part=70_000, extra=b"x", chunked=True),
        Behaviour(status=416),
    ],
    ids=["from elsewhere", "to elsewhere", "nonsense", "longer than announced", "refused"],
)
def test_an_answer_that_does_not_fit_the_range_is_never_written_and_asked_for_anew(
    bench: Bench, odd: Behaviour
) -> None:
    bench.server.behave(PATH, Behaviour(fail_after=100_000), times=1)
    bench.server.behave(PATH, odd, times=1)
    bench.fetch()
    assert bench.complete


def test_a_part_of_the_rest_is_kept_and_the_next_request_goes_on_behind_it(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(fail_after=100_000), times=1)
    bench.server.behave(PATH, Behaviour(part=70_000))
    bench.fetch(retries=1, backoff_s=30.0)  # a part is no failure: nothing is waited for
    assert bench.complete and bench.received.count == bench.server.served[f"/{PATH}"] == len(DATA)
    ranges = [headers.get("range") for _, headers in bench.server.requests]
    assert ranges == [None, "bytes=100000-", "bytes=170000-", "bytes=240000-"]


def test_a_part_that_is_cut_off_is_resumed_where_it_was_cut(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(fail_after=100_000), times=1)
    bench.server.behave(PATH, Behaviour(part=70_000, fail_after=30_000), times=1)
    bench.fetch()
    assert bench.complete and bench.server.requests[-1][1]["range"] == "bytes=130000-"


@pytest.mark.parametrize("short", [Behaviour(body=DATA[:50_000], etag=""), Behaviour(content_range="bytes 0-99/100")])
def test_a_shorter_file_than_promised_is_refused(bench: Bench, short: Behaviour) -> None:
    bench.server.behave(PATH, Behaviour(fail_after=100_000), times=1)
    bench.server.behave(PATH, short)
    assert bench.refused().code == "SIZE_MISMATCH"


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(extra=b"x"),
        Behaviour(body=DATA[:-1]),
        Behaviour(content_length=10**12),
        Behaviour(body=DATA + os.urandom(500_000), chunked=True),
    ],
)
def test_another_length_is_refused_and_no_byte_beyond_is_written(bench: Bench, behaviour: Behaviour) -> None:
    bench.server.behave(PATH, behaviour)
    assert bench.refused().code == "SIZE_MISMATCH"
    partial = bench.blobs.partial(DIGEST)
    assert not partial.exists() or partial.stat().st_size <= len(DATA)


def test_a_body_without_length_is_fine_if_it_is_right(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(chunked=True))
    bench.fetch()
    assert bench.complete


def test_a_body_without_length_that_ends_early_is_resumed(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(body=DATA[:70_000], chunked=True, etag=""), times=1)
    bench.fetch()
    assert bench.complete


def test_compressed_replies_are_refused(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(content_encoding="gzip"))
    assert bench.refused().code == "CONTENT_ENCODING_REFUSED"


def test_wrong_content_is_refused_at_once_and_leaves_nothing(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(body=os.urandom(len(DATA))))
    assert bench.refused().code == "BLOB_DIGEST_MISMATCH"
    assert len(bench.server.requests) == 1 and not bench.blobs.partial(DIGEST).exists()


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_obeyed_in_both_forms_and_bounded(bench: Bench, form: str) -> None:
    begun = time.monotonic()
    value = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
    bench.server.behave(PATH, Behaviour(status=503, retry_after=value), times=1)
    bench.fetch()
    assert time.monotonic() - begun >= 0.9
    bench.blobs.drop(DIGEST)
    bench.server.behave(PATH, Behaviour(status=429, retry_after="86400"), times=1)
    bench.fetch(retry_after_max_s=0.1)  # else this test would not end
    assert bench.complete


def test_a_redirect_inside_is_followed(bench: Bench) -> None:
    (bench.server.root / "moved").write_bytes(DATA)
    bench.server.behave(PATH, Behaviour(redirect="/moved"))
    bench.fetch()
    assert bench.complete


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/x", "file:///etc/passwd", "http://u@127.0.0.1/x", "ftp://x/y"])
def test_a_redirect_that_leaves_the_sources_is_refused(bench: Bench, target: str) -> None:
    bench.server.behave(PATH, Behaviour(redirect=target))
    assert bench.refused().code == "REDIRECT_REFUSED"


def test_redirects_in_a_circle_end(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(redirect=f"/{PATH}"))
    assert bench.refused().code == "TOO_MANY_REDIRECTS"


def test_a_server_that_trickles_is_given_up(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(rate_bytes_s=20_000))
    error = bench.refused(stall_window_s=0.5, stall_min_bytes=100_000, retries=1)
    assert error.code == "STALLED"


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\n" + b"X-Many: 1\r\n" * 200_000, b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 2_000_000,
     b"HTTP/1.1 " + b"2" * 2_000_000],
    ids=["many", "long", "status"],
)  # fmt: skip
def test_a_head_that_is_far_too_large_is_given_up_before_a_byte_is_kept(bench: Bench, head: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            line, _ = listener.accept()
            with line, suppress(ConnectionError):  # the client does not read it to its end
                line.recv(65_536)
                line.sendall(head)

        server = threading.Thread(target=serve)
        server.start()
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        tracemalloc.start()
        try:
            assert bench.refused(f"{base}/x", allowed_sources=(base,), retries=0).code == "CONNECTION_FAILED"
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()
            server.join(60.0)
    assert not server.is_alive() and not list((bench.folder / "partial").iterdir())
    wait_until_nothing_is_left_behind()


@pytest.mark.parametrize("behaviour", [Behaviour(silent_s=20.0), Behaviour(stall_after=1000)])
def test_a_silent_server_is_given_up_and_the_rest_is_fetched_later(bench: Bench, behaviour: Behaviour) -> None:
    bench.server.behave(PATH, behaviour, times=1)
    bench.fetch(read_timeout_s=0.3, connect_timeout_s=0.3, retries=1000)  # a stall of the machine costs an attempt
    assert bench.complete


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_head_that_trickles_for_ever_is_given_up_and_leaves_no_thread_and_no_socket(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(trickle_head_s=0.02))
    before = open_files()
    assert bench.refused(read_timeout_s=0.3, connect_timeout_s=0.2, retries=3).code == "STALLED"
    wait_until_nothing_is_left_behind()
    assert bench.server.requests
    bench.server.closing.set()  # the server's side of the sockets is in this process as well
    wait_for(lambda: open_files() <= before, "the end of the sockets")


@pytest.mark.parametrize("behaviour", [Behaviour(silent_s=20.0), Behaviour(stall_after=1000), Behaviour(status=503)])
def test_a_cancellation_ends_any_wait_and_leaves_no_thread_behind(bench: Bench, behaviour: Behaviour) -> None:
    bench.server.behave(PATH, behaviour)
    threading.Timer(0.3, bench.cancelled.set).start()
    with pytest.raises(CancelledError):
        bench.fetch(backoff_s=30.0, backoff_max_s=30.0, retries=100, read_timeout_s=300.0)
    wait_until_nothing_is_left_behind()


def test_a_refused_connection_is_retried_then_reported(bench: Bench) -> None:
    url = f"http://127.0.0.1:1/{PATH}"
    error = bench.refused(url, allowed_sources=("http://127.0.0.1:1",), retries=2)
    assert error.code == "CONNECTION_FAILED"


def test_the_bandwidth_cap_holds_the_mean_rate(bench: Bench) -> None:
    begun = time.monotonic()
    bench.fetch(bandwidth_bytes_s=300_000)
    assert time.monotonic() - begun >= 0.9


def test_the_second_place_is_tried_when_the_first_has_nothing(bench: Bench) -> None:
    (bench.server.root / "model.safetensors").write_bytes(DATA)
    bench.fetch(bench.server.url("blobs/sha256/nothing"), bench.server.url("model.safetensors"))
    assert bench.complete
    bench.blobs.drop(DIGEST)
    bench.server.behave("nothing", Behaviour(status=403))
    error = bench.refused(bench.server.url("nothing"), bench.server.url("model.safetensors"))
    assert error.code == "HTTP_STATUS"


def test_file_urls_work_and_resume(bench: Bench) -> None:
    source = bench.folder / "source"
    source.write_bytes(DATA)
    bench.blobs.partial(DIGEST).write_bytes(DATA[:1234])
    bench.fetch(source.as_uri())
    assert bench.complete and bench.received.count == len(DATA) - 1234
    bench.blobs.drop(DIGEST)
    assert bench.refused((bench.folder / "missing").as_uri()).code == "NOT_FOUND"


def test_after_a_reboot_only_what_was_flushed_is_relied_upon(bench: Bench) -> None:
    bench.server.behave(PATH, Behaviour(fail_after=100_000), times=1)
    bench.refused(retries=0)
    assert bench.blobs.info(DIGEST, len(DATA)).size == 100_000
    note = bench.blobs.partial_dir / f"{DIGEST}.note"
    flushed = '{"flushed": 65536, "etag": "", "boot_id": "another"}'
    note.write_text(flushed)
    assert bench.blobs.info(DIGEST, len(DATA)).size == 65536
    damaged = DATA[:65536] + bytes(100_000 - 65536)  # what a power loss may leave behind the flushed part
    bench.blobs.partial(DIGEST).write_bytes(damaged)
    bench.fetch()
    assert bench.complete and bench.server.requests[-1][1]["range"] == "bytes=65536-"


@pytest.mark.parametrize("size", [50_000, len(DATA)])
def test_a_blob_that_is_damaged_as_a_partial_download_is_fetched_anew_at_once(bench: Bench, size: int) -> None:
    bench.blobs.partial(DIGEST).write_bytes(os.urandom(size))
    bench.fetch(retries=0)
    assert bench.complete


def test_an_empty_file_needs_no_request(bench: Bench) -> None:
    empty = hashlib.sha256(b"").hexdigest()
    bench.fetch(digest=empty, size=0)
    assert bench.blobs.claim(empty, 0) and not bench.server.requests


def test_a_manifest_is_bounded(bench: Bench) -> None:
    config = OtaConfig(store_dir="/unused", allowed_sources=(bench.server.base,), max_manifest_bytes=1000)
    fetcher = Fetcher(config, bench.blobs)
    with pytest.raises(FetchError, match="MANIFEST_TOO_LARGE"):
        fetcher.manifest(parse_url(bench.server.url(PATH)), Received(), lambda: False)


def test_memory_stays_bounded_whatever_the_size(bench: Bench) -> None:
    size = 40 << 20
    big = bench.folder / "big"
    with big.open("wb") as file:
        file.truncate(size)
    digest = hashlib.sha256()
    for _ in range(40):
        digest.update(bytes(1 << 20))
    tracemalloc.start()
    try:
        bench.fetch(big.as_uri(), size=size, digest=digest.hexdigest())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert bench.blobs.claim(digest.hexdigest(), size)


def test_retries_wait_a_random_time_below_a_bound_that_doubles_up_to_its_most(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a fleet whose server was away does not come back all at once."""
    bench.server.behave(PATH, Behaviour(status=503))
    bounds: list[tuple[float, float]] = []
    waits: list[float] = []

    class Draws(random.Random):
        def uniform(self, a: float, b: float) -> float:
            bounds.append((a, b))
            return super().uniform(a, b)

    monkeypatch.setattr(fetcher, "pause", lambda duration_s, cancelled: waits.append(duration_s))
    config = OtaConfig(
        store_dir="/unused", allowed_sources=(bench.server.base,), retries=6, backoff_s=1.0, backoff_max_s=10.0
    )
    downloads = Fetcher(config, bench.blobs, Draws(7))
    with pytest.raises(FetchError, match="HTTP_STATUS"):
        downloads.blob(
            [parse_url(bench.server.url(PATH))], DIGEST, len(DATA), Received(), lambda done: None, lambda: False
        )
    assert bounds == [(0.0, most) for most in (1.0, 2.0, 4.0, 8.0, 10.0, 10.0)]
    assert len(set(waits)) == 6 and all(0 <= wait <= most for wait, (_, most) in zip(waits, bounds, strict=True))
