# SPDX-License-Identifier: Apache-2.0
"""The ring is bounded in seconds and bytes, and keeps what is newest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.recordings import COUNTS, count

from vla_recorder.records import Topic
from vla_recorder.ring import Ring

LATCHED = Topic("/latched", COUNTS.type, COUNTS.schema, latched=True)


@given(
    steps=st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 3000)), max_size=60),
    seconds=st.floats(0.1, 10.0),
    max_bytes=st.integers(1, 20_000),
)
def test_the_ring_never_holds_more_seconds_or_bytes_than_it_may_and_loses_only_the_oldest(
    steps: list[tuple[float, int]], seconds: float, max_bytes: int
) -> None:
    ring, now_s, added = Ring(seconds, max_bytes), 0.0, []
    for number, (step_s, padding) in enumerate(steps):
        now_s += step_s
        record = count(number, padding=padding)
        ring.add(record, int(now_s * 1e9))
        added.append((now_s, record))
        kept = ring.records()
        assert ring.bytes == sum(r.size for r in kept) <= max_bytes
        assert kept == [r for _, r in added][len(added) - len(kept) :]
        assert all(now_s - at_s <= seconds + 1e-6 for at_s, _ in added[len(added) - len(kept) :])


def test_of_a_latched_topic_the_last_message_before_the_window_is_kept_and_stands_at_its_begin() -> None:
    ring = Ring(2.0, 1 << 20)
    for number in (1, 2):
        ring.add(count(number, LATCHED), number)
    for number in range(100):
        ring.add(count(100 + number), int(number * 0.1e9))
    first, second = ring.records()[:2]
    assert (first.topic, first.data) == (LATCHED, count(2, LATCHED).data)
    assert first.received_ns == second.received_ns and first.published_ns < first.received_ns
    assert ring.bytes == sum(r.size for r in ring.records())


def test_a_wall_clock_that_is_set_back_does_not_empty_the_ring() -> None:
    ring = Ring(10.0, 1 << 20)
    for number in range(50):
        ring.add(count(number, second=number / 10 - (3600 if number > 25 else 0)), int(number * 0.1e9))
    assert len(ring.records()) == 50
