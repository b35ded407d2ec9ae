"""A story in which something is missing or went otherwise fails and says what; one that went well passes and makes a report."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vla_ota.msg import EpisodeOutcome, ModelEvent, ModelStatus, ModelUpdate, PolicyStatus, SwapReport

from vla_ros.stamps import from_seconds
from vla_sim.checkpoint_server import CheckpointServer
from vla_sim.demo.__main__ import play
from vla_sim.demo.expectations import UPDATE_PATH, committed, refused, resumed, undisturbed, undone_by_itself
from vla_sim.demo.journal import Journal, Killed, WaitError, at_s
from vla_sim.demo.picture import PictureError, draw
from vla_sim.demo.processes import DemoError
from vla_sim.demo.report import Evidence, make_report
from vla_sim.demo.story import Chapter
from vla_sim.demo.timeline import Timeline, tables
from vla_sim.witness import Late

SIZE, PERIOD_S = 1000, 0.02


class Robot:
    """Reports as the nodes do; a second passes with every event. ``skip`` is a state that none of them mentions."""

    def __init__(self, server: CheckpointServer, skip: str = "") -> None:
        self.server, self.journal, self.skip = server, Journal(), skip
        self.now_s, self.active, self.blocked = 1_800_000_000.0, "1.0.0", [""]
        self.missed = self.starved = 0
        self.late: list[Late] = []
        self.say(PolicyStatus())  # not configured yet: no rate
        self.second()

    @property
    def evidence(self) -> Evidence:
        return Evidence(self.journal, self.server, self.late, {"1.1.0": {"/blobs/1.1.0": SIZE}}, 10)

    def say(self, message: Any) -> None:
        message.header.stamp = from_seconds(self.now_s)
        self.journal.add(message)

    def second(self) -> None:
        """The arm works for a second."""
        for _ in range(50):
            self.now_s += PERIOD_S
            self.journal.commands.append(self.now_s)
            self.journal.joints.append((self.now_s, [0.0, 0.1, 0.2]))
        self.say(
            PolicyStatus(
                state=PolicyStatus.STATE_RUNNING, active_version=self.active, control_rate_hz=50.0,
                ticks=len(self.journal.commands), missed_ticks=self.missed, starved_ticks=self.starved,
            )
        )  # fmt: skip
        self.say(ModelStatus(blocked=self.blocked))

    def update(self, version: str, *states: str, error_code: str = "") -> None:
        self.now_s += 0.1
        self.say(ModelUpdate(update_id=version, version=version))
        for state in states:
            if state == self.skip:
                continue
            if state == "FETCHING":
                self.server.count(f"/blobs/{version}", SIZE)
            if state in ("TRIAL", "ROLLED_BACK"):
                self.swap("1.0.0" if state == "ROLLED_BACK" else version, "UPDATE" if state == "TRIAL" else "ROLLBACK")
            if state == "ROLLED_BACK":
                self.blocked.append(version)
            code = error_code if state in ("REJECTED", "ROLLING_BACK") else ""
            self.say(ModelEvent(update_id=version, version=version, to_state=state, error_code=code, message="why"))
            self.say(ModelStatus(update_id=version, state_name=state, bytes_downloaded=SIZE, committed_version=version))
            self.now_s += 0.1
            if state != "ROLLING_BACK":
                self.second()

    def swap(self, version: str, cause: str, *, warm: bool = True, missed: int = 0) -> None:
        self.say(
            SwapReport(
                from_version=self.active, to_version=version, cause=cause, warm=warm, missed_ticks=missed,
                tick_histogram=[100, 0, 0, 0, 0, missed, 0, 0],
            )
        )  # fmt: skip
        self.active, self.missed = version, self.missed + missed
        self.say(EpisodeOutcome(version=version, success=True, known=True))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CheckpointServer]:
    with CheckpointServer(tmp_path) as running:
        yield running


@pytest.fixture
def robot(server: CheckpointServer) -> Robot:
    return Robot(server)


def test_a_version_that_was_not_committed_is_no_update(server: CheckpointServer) -> None:
    for skip, problems in (("", []), ("COMMITTED", ["1.1.0 was not in COMMITTED"])):
        robot = Robot(server, skip)
        robot.update("1.1.0", *UPDATE_PATH, "COMMITTED")
        assert committed("1.1.0", "1.0.0")(robot.evidence) == problems


def test_a_corrupted_version_that_acts_is_not_refused(robot: Robot) -> None:
    robot.update("1.1.1", "CHECKING", "FETCHING", "REJECTED", error_code="BLOB_DIGEST_MISMATCH")
    check = refused("1.1.1", keeps="1.0.0")
    assert check(robot.evidence) == []
    for_another = refused("1.1.1", "1.0.0", ("SHADOW_LIMIT",))
    assert for_another(robot.evidence) == ["1.1.1 was rejected for BLOB_DIGEST_MISMATCH"]
    robot.swap("1.1.1", "UPDATE")
    assert check(robot.evidence) == ["1.1.1 was rejected and acted all the same"]


def test_a_rollback_that_loads_or_downloads_or_blocks_nothing_is_not_the_one_promised(robot: Robot) -> None:
    robot.update("1.2.0", *UPDATE_PATH, "ROLLING_BACK", "ROLLED_BACK", error_code="SCORES_WORSE")
    check = undone_by_itself("1.2.0", "1.0.0")
    assert check(robot.evidence) == []
    report, statuses = robot.journal.all(SwapReport)[-1], robot.journal.all(ModelStatus)
    report.warm = False
    robot.server._sent.append((at_s(report), 7))
    for status in statuses:
        status.blocked = []
    problems = "\n".join(check(robot.evidence))
    assert (
        "had to load 1.0.0 again" in problems
        and "downloaded 7 bytes" in problems
        and "1.2.0 is not blocked" in problems
    )


def test_a_byte_that_is_sent_twice_after_a_kill_is_found(robot: Robot) -> None:
    robot.update("1.1.0", "CHECKING", "FETCHING")
    robot.journal.add(Killed(robot.now_s, "ota_manager"))
    robot.second()
    assert resumed("1.1.0")(robot.evidence) == []
    robot.server.count("/blobs/1.1.0", 1)
    assert resumed("1.1.0")(robot.evidence) == [f"/blobs/1.1.0 has {SIZE} bytes, {SIZE + 1} were sent"]


def test_a_missed_tick_fails_unless_the_witness_suffered_at_the_same_moment(robot: Robot) -> None:
    robot.second()
    stalled_s = robot.now_s
    robot.swap("1.1.0", "UPDATE", missed=2)
    robot.second()
    found = undisturbed(robot.evidence)
    assert (
        found[0] == "1.0.0 -> 1.1.0: 2 ticks missed, 0 starved" and "2 ticks that the witness did not miss" in found[1]
    )

    robot.late = [Late(stalled_s - 10.0, stalled_s - 9.97, 0.026)]  # another time
    assert undisturbed(robot.evidence) == found
    robot.late = [Late(stalled_s, stalled_s + 0.03, 0.026)]
    assert undisturbed(robot.evidence) == []
    report = json.loads(json.dumps(make_report(robot.evidence)))
    assert (report["missed_ticks"], report["machines_ticks"]) == (0, 2)
    assert [(row["missed_ticks"], row["machines_ticks"]) for row in report["swaps"]] == [(0, 2)]

    robot.now_s += 0.8
    robot.second()
    assert undisturbed(robot.evidence) == ["the arm got no command for 0.82 s"]


def test_the_tables_and_the_picture_show_what_the_report_has(
    robot: Robot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    robot.update("1.1.0", *UPDATE_PATH, "COMMITTED")
    robot.update("1.2.0", *UPDATE_PATH, "ROLLING_BACK", "ROLLED_BACK", error_code="SCORES_WORSE")
    robot.journal.add(Killed(robot.now_s, "worker"))
    robot.late = [Late(robot.now_s, robot.now_s + 0.03, 0.026)]
    report = make_report(robot.evidence)
    text = "\n".join(tables(report))
    for row in ("1.0.0  1.1.0", "1.2.0  1.0.0  SCORES_WORSE", "witness's worst"):
        assert row in text
    draw(robot.evidence, report, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PictureError, match="matplotlib"):
        draw(robot.evidence, report, tmp_path / "none.png")


@pytest.mark.parametrize("error", [None, WaitError("waited in vain"), DemoError("nobody there")])
def test_a_problem_names_its_chapter_and_what_cannot_be_gone_on_with_ends_the_story(error: Exception | None) -> None:
    def act(stage: Any) -> None:
        if error:
            raise error

    played: list[str] = []
    chapters = [
        Chapter("one", act, lambda seen: ["wrong"]),
        Chapter("two", lambda stage: played.append("two"), lambda seen: []),
    ]
    stage: Any = SimpleNamespace(look=lambda: None)
    found = play(chapters, stage, Timeline(lambda line: None))
    if error is None:
        assert (found, played) == (["chapter 1: wrong"], ["two"])
    else:
        assert (found, played) == ([f"chapter 1: {error}", "the last 1 chapters were not played"], [])
