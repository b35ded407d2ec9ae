# SPDX-License-Identifier: Apache-2.0
"""Episodes reach the real fleet server whole and once, whatever is restarted on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.episodes import make_episode
from support.fleet import enrolled
from support.fleet_app import FleetApp
from support.waits import wait_for

from vla_recorder.episodes import upload
from vla_recorder.episodes.shelf import REFUSED, UPLOADED, EpisodeShelf
from vla_recorder.episodes.upload import Sender, Upload, Uploader
from vla_recorder.settings import ALL, FAILURES

GOOD, BAD, CORRECTED = ("20260101T000000Z_good.mcap", "20260101T000001Z_bad.mcap", "20260101T000002Z_corrected.mcap")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_LOOK_S", 0.05)
    monkeypatch.setattr(upload, "retry_after_s", lambda failures: 0.05)


class Robot:
    """A folder with a success, a failure and a correction, and whatever uploads it."""

    def __init__(self, folder: Path) -> None:
        self.shelf, self.token = EpisodeShelf(folder / "episodes", 1 << 30, 0), folder / "token"
        make_episode(self.shelf.folder / GOOD, 0)
        make_episode(self.shelf.folder / BAD, 1, success=False)
        make_episode(self.shelf.folder / CORRECTED, 2, corrected=3, intervention=True)
        self.may = True

    def uploader(self, server: FleetApp | str, what: str = FAILURES, **more: Any) -> Uploader:
        """One that has just been started."""
        url = server if isinstance(server, str) else server.url
        made = Uploader(self.shelf, Upload(url, self.token, what=what, **more), lambda: self.may)
        made.start()
        return made

    def marked(self, mark: str) -> set[str]:
        return {path.stem for path in self.shelf.folder.glob(f"*{mark}")}

    def waiting(self, uploader: Uploader) -> list[Path]:
        return uploader.waiting(self.shelf.kept())


@pytest.fixture
def robot(tmp_path: Path) -> Robot:
    return Robot(tmp_path / "robot")


@pytest.fixture
def started(tmp_path: Path, robot: Robot) -> Iterator[Callable[[], FleetApp]]:
    """Start the server, or the one that comes after it; the robot is enrolled with the first."""
    running: list[FleetApp] = []

    def start() -> FleetApp:
        while running:
            running.pop().__exit__(None, None, None)
        app = FleetApp(tmp_path / "fleet", heartbeat_s=60.0)
        app.__enter__()
        running.append(app)
        if not robot.token.exists():
            with app.client() as client:
                robot.token.write_text(enrolled(client, "arm"))
        return app

    yield start
    while running:
        running.pop().__exit__(None, None, None)


def on(app: FleetApp) -> dict[str, int]:
    """Episode and its number of corrected steps, of what the server has."""
    with app.client() as client:
        return {row["episode_id"]: row["corrections"] for row in client.episodes()}


def test_failures_and_corrections_are_uploaded_and_successes_only_if_all_are_wanted(
    robot: Robot, started: Callable[[], FleetApp]
) -> None:
    app = started()
    some = robot.uploader(app)
    wait_for(lambda: robot.marked(UPLOADED) == {BAD, CORRECTED}, "both")
    assert on(app) == {"e-1": 0, "e-2": 3} and not robot.waiting(some) and not some.problem
    some.stop()
    everything = robot.uploader(app, ALL)
    wait_for(lambda: robot.marked(UPLOADED) == {GOOD, BAD, CORRECTED}, "all")
    everything.stop()
    assert everything.uploaded == 1 and len(on(app)) == 3


def test_an_upload_goes_on_where_it_was_when_an_episode_begins_and_after_both_sides_were_restarted(
    robot: Robot, started: Callable[[], FleetApp], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(upload, "_PIECE_BYTES", 500)
    sent: list[tuple[int, int]] = []
    ask = Sender.ask

    def counted(self: Sender, method: str, sha256: str, data: bytes | None = None, query: Any = None) -> Any:
        answer = ask(self, method, sha256, data, query)
        if data is not None:
            sent.append((query["offset"], len(data)))
            robot.may = len(sent) != 2  # an episode begins
        return answer

    monkeypatch.setattr(Sender, "ask", counted)
    app = started()
    first = robot.uploader(app)
    wait_for(lambda: len(sent) == 2 and not robot.may, "the begin of an episode")
    first.stop()
    assert not robot.marked(UPLOADED)
    app = started()
    robot.may = True
    second = robot.uploader(app)
    wait_for(lambda: robot.marked(UPLOADED) == {BAD, CORRECTED}, "the rest")
    second.stop()
    sizes = sum((robot.shelf.folder / name).stat().st_size for name in (BAD, CORRECTED))
    assert sum(size for _, size in sent) == sizes, "no byte is sent twice"
    with app.client() as client:
        (row,) = [row for row in client.episodes() if row["episode_id"] == "e-1"]
        client.download_episode(row["sha256"], tmp_path / "copy.mcap")
    assert (tmp_path / "copy.mcap").read_bytes() == (robot.shelf.folder / BAD).read_bytes()


def test_a_robot_that_is_never_idle_uploads_what_has_waited_long_enough(
    robot: Robot, started: Callable[[], FleetApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    app = started()
    never = Uploader(robot.shelf, Upload(app.url, robot.token), lambda: bool(asked.append(False)))
    never.start()
    wait_for(lambda: len(asked) > 10, "some looks")
    assert not on(app), "it waits for a time without an episode"
    monkeypatch.setattr(upload, "_LONGEST_WAIT_S", 0.0)
    wait_for(lambda: robot.marked(UPLOADED) == {BAD, CORRECTED}, "both")
    never.stop()


def test_a_file_that_is_no_episode_is_marked_refused_with_the_reason_kept_and_not_sent_again(
    robot: Robot, started: Callable[[], FleetApp]
) -> None:
    (robot.shelf.folder / BAD).write_bytes(b"\x89MCAP0\r\n" + bytes(100))
    app = started()
    uploader = robot.uploader(app)
    wait_for(lambda: robot.marked(REFUSED) == {BAD} and robot.marked(UPLOADED) == {CORRECTED}, "both")
    uploader.stop()
    why = robot.shelf.folder / f"{BAD}{REFUSED}"
    assert "EPISODE_INVALID" in why.read_text() and (robot.shelf.folder / BAD).exists() and not robot.waiting(uploader)


def test_while_the_server_is_away_or_knows_no_such_robot_episodes_wait(
    robot: Robot, started: Callable[[], FleetApp]
) -> None:
    lonely = robot.uploader("http://127.0.0.1:9")
    wait_for(lambda: "NOT_ENROLLED" in lonely.problem, "no token yet")
    robot.token.write_text("not a robot's")
    wait_for(lambda: "Connection" in lonely.problem, "no server")
    lonely.stop()
    robot.token.unlink()
    app = started()
    token = robot.token.read_text()
    robot.token.write_text("somebody's")
    uploader = robot.uploader(app)
    wait_for(lambda: "answered 401" in uploader.problem, "a token that the server does not know")
    assert not robot.marked(REFUSED) and not on(app)
    robot.token.write_text(token)  # fleet_bridge has written a new one
    wait_for(lambda: robot.marked(UPLOADED) == {BAD, CORRECTED}, "both")
    assert not uploader.problem
    uploader.stop()


def test_a_bandwidth_bound_is_kept_by_pauses(
    robot: Robot, started: Callable[[], FleetApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(Uploader, "_pause", lambda self, seconds: pauses.append(seconds) or self._stopping.wait(0.001))
    monkeypatch.setattr(upload, "_LOOK_S", 0.0)
    uploader = robot.uploader(started(), bandwidth_bytes_s=1000)
    wait_for(lambda: robot.marked(UPLOADED) == {BAD, CORRECTED}, "both")
    uploader.stop()
    sizes = sum((robot.shelf.folder / name).stat().st_size for name in (BAD, CORRECTED))
    assert sum(pauses) == pytest.approx(sizes / 1000) and max(pauses) <= 1.0
