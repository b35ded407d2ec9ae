# SPDX-License-Identifier: Apache-2.0
"""A reader never sees a half-written record, and a process that goes is seen as gone."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from vla_policy_node.ipc.arena import Arena, ArenaError, Field, Layout
from vla_policy_node.ipc.channel import Channel, ChannelClosedError, ChannelFullError

LAYOUT = Layout([Field("number", "int64"), Field("block", "float32", (200, 7))])

READER = """
import sys, time
import numpy as np
from vla_policy_node.ipc.arena import Arena, Layout
from vla_policy_node.ipc.channel import Channel
channel = Channel.from_fd(int(sys.argv[1]))
message, fds = channel.receive(10)
arena = Arena.attach(Layout.from_json(message["layout"]), message["slots"], fds[0])
seen, torn, end = 0, 0, time.monotonic() + 1.5
while time.monotonic() < end:
    record = arena.read()
    if record is not None:
        seen += 1
        torn += int(not np.all(record[1]["block"] == float(record[1]["number"])))
channel.send({"seen": seen, "torn": torn})
"""


def test_a_reader_in_another_process_never_sees_a_torn_record() -> None:
    arena = Arena.create(LAYOUT, slots=2)
    ours, theirs = Channel.pair()
    child = subprocess.Popen([sys.executable, "-c", READER, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        ours.send({"layout": LAYOUT.to_json(), "slots": 2}, [arena.fd])
        number, answer, end = 0, None, time.monotonic() + 30
        while answer is None and time.monotonic() < end:
            for _ in range(50):
                number += 1
                arena.write({"number": number, "block": np.full((200, 7), number, np.float32)})
            answer = ours.receive(0)
        assert answer is not None
        assert answer[0]["seen"] > 0
        assert answer[0]["torn"] == 0
    finally:
        child.kill()
        child.wait(40)
        ours.close()
        arena.close()


def test_an_overwritten_record_is_not_returned_as_the_wanted_one() -> None:
    arena = Arena.create(LAYOUT, slots=2)
    for number in range(1, 4):
        arena.write({"number": number, "block": np.zeros((200, 7), np.float32)})
    assert arena.read(seq=1) is None
    record = arena.read(seq=2)
    assert record is not None and int(record[1]["number"]) == 2
    arena.close()


def test_a_record_with_a_missing_field_is_refused_and_nothing_is_published() -> None:
    arena = Arena.create(LAYOUT)
    with pytest.raises(ValueError, match="block"):
        arena.write({"number": 1})
    assert arena.read() is None
    arena.close()


def test_a_packed_record_reads_like_one_that_was_written_field_by_field() -> None:
    layout = Layout(
        [Field("flag", "uint8"), Field("stamp", "int64"), Field("row", "float64", (9,)), Field("last", "uint64")]
    )
    row = np.linspace(0.0, 1.0, 9)
    arena = Arena.create(layout)
    assert arena.write({"flag": 1, "stamp": -5, "row": row, "last": 2**63}) == 1
    assert arena.write_packed(True, -5, row.tobytes(), 2**63) == 2
    one, two = arena.read(seq=1), arena.read(seq=2)
    assert one is not None and two is not None
    for name in one[1]:
        np.testing.assert_array_equal(one[1][name], two[1][name])
    assert arena.read_packed(layout.packed()) == (2, (1, -5, row.tobytes(), 2**63))
    assert arena.read_packed(layout.packed(["stamp", "last"])) == (2, (-5, 2**63))
    with pytest.raises(struct.error):
        arena.write_packed(True, -5, row.tobytes())
    assert arena.newest == 2
    arena.close()


def test_memory_of_another_layout_is_refused() -> None:
    arena = Arena.create(LAYOUT)
    other = Layout([Field("number", "int64"), Field("block", "int32", (200, 7))])
    with pytest.raises(ArenaError):
        Arena.attach(other, arena.slots, os.dup(arena.fd))
    arena.close()


def test_the_end_of_the_other_side_is_seen_at_once() -> None:
    ours, theirs = Channel.pair()
    theirs.close()
    with pytest.raises(ChannelClosedError):
        ours.receive(1)
    with pytest.raises(ChannelClosedError):
        ours.send({"a": 1})
    ours.close()


def test_a_reader_that_sleeps_does_not_block_a_writer_that_must_not_wait() -> None:
    ours, theirs = Channel.pair()
    with pytest.raises(ChannelFullError):
        for _ in range(100_000):
            ours.send({"text": "x" * 1000}, block=False)
    ours.close()
    theirs.close()
