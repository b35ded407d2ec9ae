# SPDX-License-Identifier: Apache-2.0
"""A recording is a complete MCAP file under its name, or a part that is recovered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recordings import COUNTS, Recording, count
from support.waits import wait_for

from vla_recorder.mcap_file import McapFile, recover
from vla_recorder.records import Note, Topic
from vla_recorder.shelf import Shelf

OTHER = Topic("/arm_1/other", COUNTS.type, COUNTS.schema)


def write(path: Path, numbers: range, *, flush_every: int = 10) -> McapFile:
    file = McapFile(path)
    file.note(Note("vla_ota.black_box", {"cause": "hold-limit"}))
    for number in numbers:
        file.write(count(number, COUNTS if number % 2 else OTHER))
        if number % flush_every == 0:
            file.flush()
    return file


def test_a_recording_is_read_by_the_public_packages_with_topics_types_times_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    file = write(path, range(100))
    assert not path.exists()
    file.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mcap"]
    found = Recording(path)
    assert found.profile == "ros2" and found.causes == ["hold-limit"]
    assert [m.value.data for m in found.messages] == list(range(100))
    assert [m.received_ns for m in found.messages] == [count(n).received_ns for n in range(100)]
    assert found.summary is not None and found.summary.statistics is not None
    assert found.summary.statistics.message_count == 100
    assert {c.topic: found.summary.schemas[c.schema_id].name for c in found.summary.channels.values()} == {
        "/counts": "std_msgs/msg/UInt32",
        "/arm_1/other": "std_msgs/msg/UInt32",
    }
    assert all(c.message_encoding == "cdr" for c in found.summary.channels.values())
    assert all(s.encoding == "ros2msg" for s in found.summary.schemas.values())


@settings(max_examples=40)
@given(cut=st.floats(0.0, 1.0))
def test_what_is_cut_off_anywhere_is_recovered_up_to_there(
    tmp_path_factory: pytest.TempPathFactory, cut: float
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    file, part = write(folder / "a.mcap", range(100)), folder / "a.mcap.part"
    file.flush()
    data = part.read_bytes()
    file.discard()
    part.write_bytes(data[: int(cut * len(data))])
    whole = recover(part)
    assert not part.exists()
    if whole is None:
        assert list(folder.iterdir()) == [] and cut < 0.5
    else:
        found = [m.value.data for m in Recording(whole).messages]
        assert found == list(range(len(found))) and len(found) >= 100 * cut - 40


CHILD = """
import itertools, sys, time
from pathlib import Path
sys.path[:0] = ["test"]
from support.recordings import count
from vla_recorder.mcap_file import McapFile
file = McapFile(Path(sys.argv[1]))
for number in itertools.count():
    file.write(count(number))
    if number % 10 == 9:
        file.flush()
        print(number, flush=True)
        time.sleep(0.002)
"""


def test_a_recorder_that_is_killed_leaves_a_part_that_the_next_one_completes(tmp_path: Path) -> None:
    name = "20261121T224408Z_hold-limit.mcap"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / name)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    flushed = [int(child.stdout.readline()) for _ in range(20)][-1]
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=60)
    (tmp_path / f"{name}.recovering").write_bytes(b"a recovery that was killed too")
    (tmp_path / "mine.mcap.part").write_bytes(b"somebody else's")
    shelf = Shelf(tmp_path, 1 << 30, 0)
    assert shelf.recordings() == []
    shelf.recover()
    assert [p.name for p in shelf.recordings()] == [name]
    found = [m.value.data for m in Recording(tmp_path / name).messages]
    assert len(found) > flushed and found == list(range(len(found)))
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, "mine.mcap.part"]
    wait_for(lambda: child.poll() is not None)


def test_what_was_left_behind_and_holds_nothing_is_removed(tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"\x89MCAP0\r\n", b"no MCAP at all")):
        (tmp_path / f"20261121T22440{number}Z_save.mcap.part").write_bytes(data)
    Shelf(tmp_path, 1 << 30, 0).recover()
    assert list(tmp_path.iterdir()) == []
