# SPDX-License-Identifier: Apache-2.0
"""When something happens the last seconds are on disk, and the disk stays bounded."""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from support.recordings import Recording, count
from support.waits import wait_for

from vla_recorder import writer
from vla_recorder.blackbox import BlackBox, Cause
from vla_recorder.errors import RecorderError
from vla_recorder.settings import RecorderSettings
from vla_recorder.shelf import Shelf

HOLD, BACK = Cause("hold-limit", "the robot holds"), Cause("rollback", "1.1.0 is rolled back")
RATE_HZ = 10


class Box:
    """A black box that gets ten records a second of a clock of its own."""

    def __init__(self, folder: Path, *, max_disk_bytes: int = 1 << 24, min_free_bytes: int = 0, **changes: Any) -> None:
        self.shelf = Shelf(folder, max_disk_bytes, min_free_bytes)
        limits = {"before_s": 3.0, "after_s": 2.0, "max_memory_bytes": 1 << 20, "max_file_bytes": 1 << 23, **changes}
        self.box = BlackBox(self.shelf, **limits)
        self.number = 0

    @property
    def now_ns(self) -> int:
        return self.number * (10**9 // RATE_HZ)

    def run(self, seconds: float, *, padding: int = 0) -> None:
        for _ in range(round(seconds * RATE_HZ)):
            self.number += 1
            record = count(self.number)
            self.box.add(dataclasses.replace(record, data=record.data + os.urandom(padding)), self.now_ns)
            self.box.tick(self.now_ns)

    def trigger(self, cause: Cause = HOLD) -> None:
        self.box.trigger(cause, self.now_ns)

    def settle(self) -> None:
        """Wait until everything is on disk."""
        wait_for(lambda: self.box.tick(self.now_ns) or not (self.box.writing or self.box._finishing))


def numbers(path: Path) -> list[int]:
    return [m.data for m in Recording(path).of("/counts")]


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_LOOK_S", 0.01)


def test_a_recording_holds_the_seconds_before_its_cause_and_those_after_it(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.run(20.0)
    assert box.shelf.recordings() == []  # nothing happened, nothing is written
    box.trigger()
    box.run(10.0)
    box.settle()
    (path,) = box.shelf.recordings()
    assert numbers(path) == list(range(170, 221)) and path == box.box.last
    assert Recording(path).causes == ["hold-limit"] and path.name.endswith("Z_hold-limit.mcap")


def test_causes_in_quick_succession_make_one_recording_that_goes_on_after_the_last(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.run(5.0)
    for cause in (HOLD, BACK, HOLD):
        box.trigger(cause)
        box.run(1.5)
    box.run(5.0)
    box.settle()
    (path,) = box.shelf.recordings()
    assert Recording(path).causes == ["hold-limit", "rollback", "hold-limit"]
    assert numbers(path)[-1] == 50 + 30 + 20


def test_later_causes_make_recordings_of_their_own_also_within_one_second_of_the_wall_clock(tmp_path: Path) -> None:
    box = Box(tmp_path)
    for _ in range(3):
        box.run(5.0)
        box.trigger()
        box.run(5.0)
    box.settle()
    assert sorted(numbers(path)[-1] for path in box.shelf.recordings()) == [70, 170, 270]


def test_saving_on_request_gives_the_complete_file_at_once(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.run(5.0)
    wait = box.box.save(Cause("save", "a person asked for it"), box.now_ns)
    box.run(0.1)
    assert numbers(wait(60.0)) == list(range(20, 52))


def test_what_is_being_written_when_the_recorder_ends_is_complete(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.run(5.0)
    box.trigger()
    box.run(1.0)
    box.box.close()
    (path,) = box.shelf.recordings()
    assert numbers(path)[-1] == 60


def test_recordings_never_take_more_than_they_may_and_the_oldest_go(tmp_path: Path) -> None:
    mine = tmp_path / "mine.mcap"
    mine.write_bytes(bytes(9_000_000))
    box, seen = Box(tmp_path, max_disk_bytes=8_000_000, max_file_bytes=4_000_000), []
    for _ in range(12):
        box.run(1.0)
        box.trigger()
        box.run(2.0, padding=60_000)
        box.settle()
        assert box.shelf.bytes <= 8_000_000 and not box.box.error
        seen.append(box.box.last)
        time.sleep(0.01)  # another time of modification
    kept = box.shelf.recordings()
    assert 1 < len(kept) < 12 and kept == seen[-len(kept) :]
    assert mine.stat().st_size == 9_000_000  # nobody asked to count or remove it


def test_a_robot_that_holds_again_and_again_fills_one_file_up_to_its_bound_and_begins_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(tmp_path, max_file_bytes=20_000)
    looks, make_room = [], box.shelf.make_room
    monkeypatch.setattr(box.shelf, "make_room", lambda *asked: looks.append(asked) or make_room(*asked))
    for _ in range(40):
        box.trigger()
        box.run(0.1, padding=3000)
        writer, before = box.box._writing, len(looks)
        assert writer is not None
        wait_for(lambda n=before, w=writer: len(looks) > n or not w.is_alive(), "the writer's next look at the disk")
    box.run(5.0)
    box.settle()
    sizes = [path.stat().st_size for path in box.shelf.recordings()]
    assert len(sizes) > 1 and max(sizes) < 200_000


def test_without_the_space_that_must_stay_free_nothing_is_written_and_the_next_cause_tries_again(
    tmp_path: Path,
) -> None:
    box = Box(tmp_path, min_free_bytes=1 << 60)
    box.run(5.0)
    box.trigger()
    box.run(5.0)
    box.settle()
    assert box.box.error.startswith("DISK_FULL: ") and list(tmp_path.iterdir()) == []
    with pytest.raises(RecorderError, match=r"^DISK_FULL: .* must stay"):
        box.box.save(HOLD, box.now_ns)(60.0)
    box.shelf._min_free_bytes = 0
    box.settle()
    box.trigger()
    box.run(5.0)
    box.settle()
    assert not box.box.error and len(box.shelf.recordings()) == 1


def test_no_recording_is_removed_that_would_free_nothing(tmp_path: Path) -> None:
    """While a robot learns from it, it has another name too."""
    shelf = Shelf(tmp_path / "b", 1 << 20, 1 << 60)
    paths = [tmp_path / "b" / f"2026010{day}T000000Z_test.mcap" for day in (1, 2)]
    for path in paths:
        path.write_bytes(bytes(100))
    (tmp_path / "learned.mcap").hardlink_to(paths[0])
    with pytest.raises(RecorderError, match="DISK_FULL"):
        shelf.make_room(10)
    assert shelf.recordings() == paths[:1]
    shelf = Shelf(tmp_path / "b", 50, 0)
    shelf.make_room(10)
    assert not shelf.recordings(), "what the folder may hold counts all the same"


def test_a_disk_that_fills_while_a_recording_is_written_ends_it_early_and_leaves_it_complete(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.run(5.0)
    box.trigger()
    wait_for(lambda: list(tmp_path.glob("*.part")), "the file")
    box.shelf._min_free_bytes = 1 << 60
    wait_for(lambda: box.run(0.1) or box.shelf.recordings(), "the end of the recording")
    box.settle()
    assert len(numbers(box.shelf.recordings()[0])) >= 31 and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "DISK_FULL"), (errno.EIO, "RECORDING_IO")])
def test_a_write_that_fails_costs_the_recording_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    box = Box(tmp_path)
    box.run(5.0)
    with monkeypatch.context() as broken:
        broken.setattr("vla_recorder.mcap_file.os.fsync", fail)
        box.trigger()
        wait_for(lambda: box.run(0.1) or box.box.error, "the failure")
    box.settle()
    assert box.box.error.startswith(f"{code}: ") and list(tmp_path.iterdir()) == []
    assert box.box.ring.seconds(box.now_ns) > 2.8  # it goes on
    box.trigger()
    box.run(3.0)
    box.settle()
    assert len(box.shelf.recordings()) == 1 and not box.box.error


def test_a_disk_that_is_too_slow_costs_messages_and_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(tmp_path, max_memory_bytes=10_000)
    held = []
    monkeypatch.setattr(box.shelf, "make_room", lambda *_: wait_for(lambda: held, "the disk"))
    box.run(1.0)
    box.trigger()
    box.run(1.5, padding=2000)
    assert 0 < box.box.dropped < 15
    held.append(True)
    box.run(2.0)
    box.settle()
    assert len(box.shelf.recordings()) == 1


@pytest.mark.parametrize("given", [{}, {"recording_dir": "x", "max_disk_bytes": 1 << 23, "max_memory_bytes": 1 << 22}])
def test_settings_that_cannot_work_are_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(RecorderError, match=r"^PARAMETER_INVALID: (recording_dir|max_disk_bytes): "):
        RecorderSettings(**given)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecorderError, match=r"^RECORDING_IO: "):
        Shelf(tmp_path / "file" / "recordings", 1 << 24, 0)


def test_a_folder_that_is_taken_away_while_the_recorder_runs_is_made_again_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    box = Box(folder)
    box.run(5.0)
    folder.rmdir()
    folder.touch()
    box.trigger()
    assert box.box.error.startswith(f"RECORDING_IO: {folder}: ")
    with pytest.raises(RecorderError, match=r"^RECORDING_IO: "):
        box.box.save(HOLD, box.now_ns)
    folder.unlink()
    box.trigger()
    box.run(3.0)
    box.settle()
    assert len(box.shelf.recordings()) == 1 and not box.box.error
