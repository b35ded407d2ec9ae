# SPDX-License-Identifier: Apache-2.0
"""Which episodes become files, and which files stay when there is no room for all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.engine_rig import contract_text
from support.episodes import make_episode
from support.waits import wait_for

from vla_learning.episodes.reading import Episode, read_episode
from vla_policy_node.contract.model import parse_contract
from vla_recorder.episodes.episodes import Episodes
from vla_recorder.episodes.shelf import REFUSED, UPLOADED, EpisodeShelf
from vla_recorder.errors import RecorderError

TOP = Path(__file__).resolve().parents[2]
CONTRACT = parse_contract(contract_text(tolerance_ms=200, max_age_ms=250))
FIRST_NS = 1_767_225_600_000_000_000


def status(episode_id: str = "") -> Any:
    return SimpleNamespace(episode_id=episode_id, experiment="ab-1")


def outcome(episode_id: str, **changes: Any) -> Any:
    how = {"success": True, "known": True, "arm": "A", "generation": 1, "duration_s": 2.5}
    return SimpleNamespace(episode_id=episode_id, **{**how, **changes})


def steps(
    episode_id: str, first: int, count: int, *, operated: bool = False, generation: int = 1, **changes: Any
) -> Any:
    values = [float(first + i) for i in range(count) for _ in range(2)]
    message = SimpleNamespace(
        episode_id=episode_id,
        instruction="reach",
        name="pick",
        version=f"1.0.{generation}",
        digest=f"{generation:064x}",
        generation=generation,
        times_ns=[FIRST_NS + (first + i) * 20_000_000 for i in range(count)],
        interventions=[operated] * count,
        actions=values,
        policy_actions=[float("nan")] * len(values) if operated else values,
        states=values,
    )
    vars(message).update(changes)
    return message


class Robot:
    """Feeds a recorder of episodes on a clock of its own."""

    def __init__(self, folder: Path, max_bytes: int = 1 << 24) -> None:
        self.shelf = EpisodeShelf(folder, max_bytes, 0)
        self.shelf.recover()
        self.episodes = Episodes(self.shelf, CONTRACT, "arm", max_waiting_bytes=1 << 20, max_file_bytes=max_bytes // 4)
        self.now_s = 100.0
        self.episodes.status(status(), self.now_s)
        self.now_s += 2.0

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.now_s += 0.1
            self.episodes.tick(self.now_s)

    def settle(self) -> None:
        wait_for(lambda: self.episodes.tick(self.now_s) or not self.episodes._finishing, "the files")

    @property
    def files(self) -> list[Episode]:
        return [read_episode(path) for path in sorted(self.shelf.folder.glob("*.mcap"))]


def test_an_episode_is_one_file_with_all_its_steps_and_how_it_ended(tmp_path: Path) -> None:
    robot = Robot(tmp_path)
    robot.episodes.status(status("first"), robot.now_s)
    robot.episodes.steps(steps("first", 0, 5), robot.now_s)
    robot.episodes.steps(steps("first", 5, 3, operated=True), robot.now_s)
    robot.episodes.steps(steps("first", 8, 2, generation=2), robot.now_s)
    robot.episodes.outcome(outcome("first", success=False, generation=2), robot.now_s)
    robot.episodes.steps(steps("first", 10, 1, generation=2), robot.now_s)  # of another topic: it may come later
    robot.run(1.0)
    robot.settle()
    (episode,) = robot.files
    meta = episode.meta
    assert episode.steps == 11 and episode.actions[:, 0].tolist() == list(range(11)) and episode.corrections == 3
    assert (episode.policy_actions[:5] == episode.actions[:5]).all() and meta.success is False and meta.intervention
    assert (meta.episode_id, meta.version, meta.generation, meta.arm) == ("first", "1.0.2", 2, "A")
    assert (meta.policy, meta.robot, meta.experiment, meta.duration_s) == ("pick", "arm", "ab-1", 2.5)
    assert robot.episodes.kept == 1 and not robot.episodes.dropped


def test_an_outcome_counts_though_the_next_episode_is_heard_of_first(tmp_path: Path) -> None:
    """They are different topics, and a robot may begin the next task at once."""
    robot = Robot(tmp_path)
    robot.episodes.status(status("first"), robot.now_s)
    robot.episodes.steps(steps("first", 0, 3), robot.now_s)
    robot.episodes.status(status("second"), robot.now_s)
    robot.episodes.steps(steps("second", 10, 2), robot.now_s)
    robot.episodes.steps(steps("first", 3, 1), robot.now_s)
    robot.episodes.outcome(outcome("first"), robot.now_s)
    robot.run(1.0)
    robot.episodes.outcome(outcome("second", success=False), robot.now_s)
    robot.run(1.0)
    robot.settle()
    first, second = robot.files
    assert (first.steps, first.meta.success) == (4, True) and (second.steps, second.meta.success) == (2, False)


def test_episodes_without_a_step_or_whose_beginning_was_missed_leave_no_file(tmp_path: Path) -> None:
    robot = Robot(tmp_path)
    robot.episodes.status(status("empty"), robot.now_s)
    robot.episodes.outcome(outcome("empty"), robot.now_s)
    robot.run(1.0)
    late = Episodes(robot.shelf, CONTRACT, "arm", max_waiting_bytes=1 << 20, max_file_bytes=1 << 20)
    late.status(status("ended"), robot.now_s)  # a latched one, older than what runs
    late.steps(steps("running", 0, 5), robot.now_s)
    late.status(status("running"), robot.now_s + 1.0)
    late.steps(steps("running", 5, 5), robot.now_s + 2.0)
    assert late.writing is None
    late.steps(steps("next", 0, 5), robot.now_s + 2.0)
    assert late.writing is not None
    late.close()
    wait_for(lambda: len(robot.files) == 1 and not list(tmp_path.glob("*.part")))
    assert robot.files[0].meta.episode_id == "next"


@pytest.mark.parametrize("how", ["another begins", "silence", "no outcome", "unknown"])
def test_an_episode_of_which_nobody_says_how_it_ended_is_of_unknown_success(tmp_path: Path, how: str) -> None:
    robot = Robot(tmp_path)
    robot.episodes.steps(steps("first", 0, 5), robot.now_s)
    if how == "another begins":
        robot.episodes.status(status("second"), robot.now_s)
    elif how == "unknown":
        robot.episodes.outcome(outcome("first", known=False), robot.now_s)
    elif how == "no outcome":
        robot.episodes.status(status(), robot.now_s)
    robot.run(7.0)
    robot.settle()
    (episode,) = robot.files
    assert episode.meta.success is None and episode.steps == 5 and not robot.episodes.running


def test_steps_of_another_robot_are_dropped_and_said(tmp_path: Path) -> None:
    robot = Robot(tmp_path)
    robot.episodes.steps(steps("first", 0, 5, actions=[0.0] * 3), robot.now_s)
    assert robot.episodes.dropped == 1


CHILD = """
import sys, time
sys.path[:0] = ["test", "test/vla_recorder"]
from pathlib import Path
from test_recorded_episodes import Robot, outcome, status, steps
robot = Robot(Path(sys.argv[1]))
for name in ("whole", "cut"):
    robot.episodes.status(status(name), robot.now_s)
    for number in range(100):
        robot.episodes.steps(steps(name, 10 * number, 10, operated=number == 3), robot.now_s)
        if name == "cut" and number == 30:
            print("begun", flush=True)
            time.sleep(600.0)
    robot.episodes.outcome(outcome(name), robot.now_s)
    robot.run(1.0)
    robot.settle()
"""


def flushed(part: Path, folder: Path) -> int:
    """Return how many steps of an unfinished file the kernel has."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(part, folder)
    return sum(episode.steps for episode in Robot(folder).files)


def test_a_kill_leaves_whole_episodes_whole_and_of_the_running_one_what_was_flushed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    with subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "begun\n"
            part = wait_for(lambda: next(tmp_path.glob("*.part"), None), "its file")
            wait_for(lambda: flushed(part, tmp_path.with_name("copy")) >= 100, "some of the second episode on disk")
        finally:
            os.kill(child.pid, signal.SIGKILL)
    assert len(list(tmp_path.glob("*.part"))) == 1
    robot = Robot(tmp_path)
    cut, whole = sorted(robot.files, key=lambda e: e.meta.episode_id)
    assert whole.steps == 1000 and whole.meta.success is True
    assert cut.meta.episode_id == "cut" and cut.meta.success is None and cut.meta.version == "1.0.1"
    assert cut.meta.intervention and cut.corrections == 10
    assert 100 <= cut.steps <= 310 and cut.actions[:, 0].tolist() == list(range(cut.steps))
    assert not list(tmp_path.glob("*.part"))


def test_plain_successes_go_first_then_what_was_uploaded_then_the_oldest(tmp_path: Path) -> None:
    folder = tmp_path / "episodes"
    shelf = EpisodeShelf(folder, 1 << 24, 0)
    made: list[Path] = []

    def add(uploaded: bool = False, **what: Any) -> Path:
        path = folder / f"20260101T0000{len(made):02}Z_e.mcap"
        make_episode(path, len(made), **what)
        os.utime(path, ns=(FIRST_NS + len(made) * 10**9,) * 2)
        if uploaded:
            shelf.mark(path, UPLOADED)
        made.append(path)
        return path

    failure, correction = add(success=False), add(corrected=2, intervention=True)
    unknown = add(success=None)
    success, sent_failure, sent_success = add(), add(True, success=False), add(True)
    newest = add()
    order = [sent_success, success, newest, sent_failure, failure, correction, unknown]
    assert shelf.recordings() == order
    for left in range(len(order) - 1, -1, -1):
        size = sum(path.stat().st_size for path in order[-left:]) if left else 0
        tight = EpisodeShelf(folder, size + 1, 0)
        tight.make_room(1)
        assert tight.recordings() == order[len(order) - left :]
    assert list(folder.iterdir()) == [], "their marks go with them"
    with pytest.raises(RecorderError, match="DISK_FULL"):
        EpisodeShelf(folder, 10, 0).make_room(11)


def test_an_episode_for_which_there_is_no_room_is_not_kept_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_recorder.writer._LOOK_S", 0.01)
    robot = Robot(tmp_path, max_bytes=4096)
    robot.episodes.steps(steps("large", 0, 500), robot.now_s)
    wait_for(lambda: robot.episodes.tick(robot.now_s) or robot.episodes.error, "the fault")
    assert "DISK_FULL" in robot.episodes.error and not robot.episodes.running and robot.episodes.dropped
    assert not list(tmp_path.iterdir())


def test_marks_of_files_that_somebody_removed_do_not_stay(tmp_path: Path) -> None:
    shelf = EpisodeShelf(tmp_path, 1 << 24, 0)
    for name in ("20260101T000000Z_a.mcap", "20260101T000001Z_b.mcap"):
        make_episode(tmp_path / name, 0)
        shelf.mark(tmp_path / name, REFUSED, "EPISODE_INVALID: why\n")
    (tmp_path / "20260101T000000Z_a.mcap").unlink()
    shelf.recover()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["20260101T000001Z_b.mcap", "20260101T000001Z_b.mcap.refused"]
