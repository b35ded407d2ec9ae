# SPDX-License-Identifier: Apache-2.0
"""Deadlines are absolute, lost ticks are counted and never made up for; counts add up; a topic has one publisher of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.refusals import refused

from vla_policy_node.control.counters import MAX_SPANS, Counters, Spans
from vla_policy_node.control.lock import TopicLock
from vla_policy_node.control.schedule import Schedule
from vla_policy_node.errors import ControlError

PERIOD = 20_000_000


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.lists(st.one_of(st.integers(0, PERIOD), st.integers(0, 50 * PERIOD)), min_size=1, max_size=60))
def test_every_deadline_is_met_or_counted_whatever_a_tick_takes(takes: list[int]) -> None:
    schedule, counters = Schedule(PERIOD, 0), Counters()
    now, commands = 0, 0
    for spent in takes:
        now = max(now, schedule.deadline_ns)
        begun = now
        now += spent
        late, skipped = schedule.finish(now)
        commands += 1
        counters.add(late, PERIOD, skipped, starved=False, clamped=False)
        assert late == now - (schedule.tick - 1 - skipped) * PERIOD
        assert schedule.deadline_ns % PERIOD == 0
        if skipped:
            assert schedule.deadline_ns >= now  # no burst: the next command waits for a deadline that is still to come
            assert schedule.deadline_ns - now < PERIOD
        assert begun >= 0
    assert counters.ticks == schedule.tick == sum(counters.histogram)
    assert counters.ticks - commands <= counters.missed <= counters.ticks
    if all(spent <= PERIOD // 2 for spent in takes):
        assert counters.missed == 0 and counters.ticks == commands


def test_a_tick_is_missed_when_it_is_more_than_one_period_late() -> None:
    for late, missed, following in ((PERIOD, 0, 1), (PERIOD + 1, 2, 2), (3 * PERIOD, 3, 3)):
        schedule, counters = Schedule(PERIOD, 0), Counters()
        counters.add(*(lambda r: (r[0], PERIOD, r[1]))(schedule.finish(late)), starved=False, clamped=False)
        assert counters.missed == missed and schedule.tick == following


def test_a_loop_that_was_not_wanted_goes_on_without_counting() -> None:
    schedule = Schedule(PERIOD, 0)
    schedule.resync(10 * PERIOD + 5)
    assert schedule.tick == 11
    schedule.resync(3)
    assert schedule.tick == 11


def test_spans_count_from_their_begin_to_their_end_and_are_bounded() -> None:
    spans = Spans()
    spans.begin("a")
    spans.add(100_000_000, PERIOD, 2, starved=True, clamped=False)
    spans.begin("a")  # again: the first begin counts
    spans.end("a", 500)
    assert spans.ended(499) == []
    spans.add(0, PERIOD, 0, starved=False, clamped=True)
    [(name, counts)] = spans.ended(500)
    assert (name, counts.ticks, counts.missed, counts.starved, counts.clamped) == ("a", 4, 3, 1, 1)
    assert counts.to_json()["worst_late_ms"] == 100.0 and sum(counts.histogram) == 4
    assert spans.ended(10**12) == []
    for i in range(3 * MAX_SPANS):
        spans.begin(str(i))
    assert spans.get("0") is None and spans.get(str(3 * MAX_SPANS - 1)) is not None
    spans.end("unknown", 0)


def test_a_topic_is_locked_once_a_domain_and_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    first = TopicLock(7, "/arm/commands", tmp_path)
    with pytest.raises(ControlError) as e:
        TopicLock(7, "/arm/commands", tmp_path)
    assert e.value.code == "COMMAND_TOPIC_LOCKED" and "/arm/commands" in e.value.message
    for other in (TopicLock(8, "/arm/commands", tmp_path), TopicLock(7, "/other/commands", tmp_path)):
        other.close()
    first.close()
    code = "import sys, os, signal; from vla_policy_node.control.lock import TopicLock; "
    code += "lock = TopicLock(7, '/arm/commands', sys.argv[1]); os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    TopicLock(7, "/arm/commands", tmp_path).close()


def test_a_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    lock = TopicLock(1, "/t", tmp_path)
    lock.close()
    lock.path.unlink()
    lock.path.symlink_to(tmp_path / "elsewhere")
    with refused("COMMAND_TOPIC_LOCKED"):
        TopicLock(1, "/t", tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_processes_with_temporary_folders_of_their_own_meet_at_the_same_lock(tmp_path: Path) -> None:
    topic = f"/{tmp_path.name}/{os.getpid()}"
    lock = TopicLock(7, topic)
    try:
        code = "import sys; from vla_policy_node.control.lock import TopicLock; TopicLock(7, sys.argv[1])"
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code, topic], env=environment, capture_output=True, check=False)
        assert done.returncode == 1 and b"COMMAND_TOPIC_LOCKED" in done.stderr
    finally:
        lock.close()
        lock.path.unlink()
