"""A story in which something is missing fails, and says what; one that went well passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from story_told import SIZE, evidence, tell_story

from vla_sim.demo.__main__ import play
from vla_sim.demo.expectations import Evidence
from vla_sim.demo.journal import (
    CommandGap,
    EpisodeOutcome,
    Killed,
    ModelEvent,
    ModelStatus,
    PolicyStatus,
    Record,
    RollbackReply,
    SwapReport,
    WaitError,
)
from vla_sim.demo.processes import DemoError
from vla_sim.demo.server import CheckpointServer
from vla_sim.demo.story import CHAPTERS, Chapter
from vla_sim.demo.timeline import Timeline

Told = tuple[list[Record], CheckpointServer]


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    records, server = tell_story(tmp_path)
    yield records, server
    server._server.server_close()  # it was never started


def problems(at: Evidence) -> list[str]:
    return [problem for chapter in CHAPTERS for problem in chapter.expect(at)]


def test_a_story_that_went_well_has_no_problem(told: Told) -> None:
    assert problems(evidence(*told)) == []


def no_event(version: str, state: str) -> Callable[[Record], bool]:
    """Neither event nor status tells of it."""

    def keep(r: Record) -> bool:
        if isinstance(r, ModelStatus):
            return (r.update_id, r.state_name) != (f"u-{version}", state)
        return not (isinstance(r, ModelEvent) and r.version == version and r.to_state == state)

    return keep


def no_swap(from_version: str, to_version: str) -> Callable[[Record], bool]:
    wanted = (from_version, to_version)
    return lambda r: not (isinstance(r, SwapReport) and (r.from_version, r.to_version) == wanted)


def without(kind: type) -> Callable[[Record], bool]:
    return lambda r: not isinstance(r, kind)


MISSING: dict[str, tuple[Callable[[Record], bool], str]] = {
    "the first install is not committed": (no_event("1.0.0", "COMMITTED"), "1.0.0 was not committed"),
    "the first swap is not reported": (no_swap("", "1.0.0"), "nothing -> 1.0.0"),
    "no trial": (no_event("1.1.0", "TRIAL"), "1.1.0 was not in TRIAL"),
    "the corrupted one is not rejected": (no_event("1.1.1", "REJECTED"), "1.1.1 was not rejected"),
    "no verdict": (no_event("1.2.0", "ROLLING_BACK"), "1.2.0 was not in ROLLING_BACK"),
    "no end of the rollback": (no_event("1.2.0", "ROLLED_BACK"), "not as ROLLED_BACK"),
    "no way back": (no_swap("1.2.0", "1.1.0"), "expected one rollback 1.2.0 -> 1.1.0"),
    "no operator": (without(RollbackReply), "nobody asked for a rollback"),
    "the manager is not killed": (
        lambda r: not (isinstance(r, Killed) and r.what == "ota_manager"),
        "the manager was killed 0 times",
    ),
    "the worker is not killed": (lambda r: not (isinstance(r, Killed) and r.what == "worker"), "a worker was killed 0 times"),
    "no hold": (lambda r: not (isinstance(r, PolicyStatus) and r.hold_reason == "WORKER_LOST"), "no hold was reported"),
    "no recovery": (no_swap("1.4.0", "1.4.0"), "no SwapReport says WORKER_LOST"),
    "no success afterwards": (without(EpisodeOutcome), "no episode succeeded"),
    "nothing from the policy node": (without(PolicyStatus), "policy_node reported nothing"),
    "the last version is not committed": (no_event("1.4.0", "COMMITTED"), "1.4.0 was not committed"),
}  # fmt: skip


@pytest.mark.parametrize(("keep", "message"), MISSING.values(), ids=MISSING.keys())
def test_a_story_with_something_missing_fails(told: Told, keep: Callable[[Record], bool], message: str) -> None:
    records = [record for record in told[0] if keep(record)]
    assert len(records) < len(told[0])
    found = problems(evidence(records, told[1]))
    assert any(message in problem for problem in found), found


def change(kind: type, when: Callable[[Any], bool], **fields: Any) -> Callable[[Record], Record]:
    return lambda r: replace(r, **fields) if isinstance(r, kind) and when(r) else r


def is_swap(from_version: str, to_version: str) -> Callable[[SwapReport], bool]:
    return lambda r: (r.from_version, r.to_version) == (from_version, to_version)


OTHERWISE: dict[str, tuple[Callable[[Record], Record], str]] = {
    "an update costs a tick": (change(SwapReport, is_swap("1.0.0", "1.1.0"), missed_ticks=1), "1 ticks missed"),
    "a rollback starves": (change(SwapReport, is_swap("1.2.0", "1.1.0"), starved_ticks=2), "2 starved"),
    "a cold rollback": (change(SwapReport, is_swap("1.2.0", "1.1.0"), warm=False), "had to load 1.1.0 again"),
    "rolled back for another reason": (
        change(ModelEvent, lambda e: e.to_state == "ROLLING_BACK" and e.version == "1.2.0", error_code="HEARTBEAT_LOST"),
        "HEARTBEAT_LOST",
    ),
    "refused without a code": (change(ModelEvent, lambda e: e.to_state == "REJECTED", error_code=""), "without code"),
    "a corrupted one acts": (
        change(PolicyStatus, lambda s: s.active_version == "1.1.0", active_version="1.1.1"), "1.1.1 acted while"
    ),
    "the operator's rollback fails": (
        change(RollbackReply, lambda r: True, success=False, error_code="NO_PREVIOUS"), "NO_PREVIOUS"
    ),
    "the bad version is not blocked": (change(ModelStatus, lambda s: True, blocked=()), "1.2.0 is not blocked"),
    "the unwanted version is blocked": (change(ModelStatus, lambda s: True, blocked=("1.2.0", "1.3.0")), "1.3.0 is blocked"),
    "something else acts at the end": (
        change(PolicyStatus, lambda s: s.active_version == "1.4.0", active_version="1.1.0"), "1.1.0 acts at the end"
    ),
    "another version after the loss": (
        change(SwapReport, lambda s: s.cause == "WORKER_LOST", to_version="1.1.0"), "no SwapReport says WORKER_LOST"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), OTHERWISE.values(), ids=OTHERWISE.keys())
def test_a_story_that_went_otherwise_fails(told: Told, edit: Callable[[Record], Record], message: str) -> None:
    records = [edit(record) for record in told[0]]
    assert records != told[0]
    found = problems(evidence(records, told[1]))
    assert any(message in problem for problem in found), found


def test_ticks_that_are_lost_while_the_manager_is_gone_fail(told: Told) -> None:
    killed_s = next(r.at_s for r in told[0] if isinstance(r, Killed) and r.what == "ota_manager")
    later = change(PolicyStatus, lambda s: s.at_s > killed_s, missed_ticks=30)
    assert problems(evidence([later(r) for r in told[0]], told[1])) == [
        "30 ticks missed and 0 starved without its manager"
    ]


def test_a_new_manager_that_is_heard_only_after_its_swap_is_not_taken_for_absent_until_then(told: Told) -> None:
    killed_s = next(r.at_s for r in told[0] if isinstance(r, Killed) and r.what == "ota_manager")
    swapped_s = next(r.at_s for r in told[0] if isinstance(r, SwapReport) and r.to_version == "1.4.0")
    late = change(ModelStatus, lambda s: killed_s < s.at_s <= swapped_s, at_s=swapped_s + 1.5)
    heard = [late(r) for r in told[0]]
    assert heard != told[0] and problems(evidence(heard, told[1])) == []


def test_on_a_machine_that_stalls_at_all_times_only_more_than_that_is_blamed_on_a_swap(told: Told) -> None:
    def stalling(in_swap: int, at_all_times: int) -> list[str]:
        records = []
        for r in told[0]:
            if isinstance(r, PolicyStatus):
                r = replace(r, missed_ticks=r.ticks * at_all_times // 100)
            elif isinstance(r, SwapReport) and r.to_version == "1.1.0" and r.cause == "UPDATE":
                r = replace(r, missed_ticks=in_swap, tick_histogram=(100 - in_swap, in_swap))
            records.append(r)
        return problems(evidence(records, told[1]))

    assert stalling(in_swap=2, at_all_times=1) == []
    assert stalling(in_swap=20, at_all_times=1) == ["1.0.0 -> 1.1.0: 20 ticks missed, 0 starved"]
    assert stalling(in_swap=1, at_all_times=0) == ["1.0.0 -> 1.1.0: 1 ticks missed, 0 starved"]


def test_a_slow_rollback_fails(told: Told) -> None:
    records = [
        replace(r, at_s=r.at_s - 1.0) if isinstance(r, ModelEvent) and r.to_state == "ROLLING_BACK" else r
        for r in told[0]
    ]
    assert any("at most 1 s expected" in problem for problem in problems(evidence(records, told[1])))


def test_a_byte_that_is_sent_twice_fails(told: Told) -> None:
    told[1].note_sent("/blobs/sha256/1.4.0", 1)
    assert f"/blobs/sha256/1.4.0 has {SIZE} bytes, {SIZE + 1} were sent" in problems(evidence(*told))


def test_a_rollback_that_downloads_fails(told: Told) -> None:
    verdict = next(r for r in told[0] if isinstance(r, ModelEvent) and r.to_state == "ROLLING_BACK")
    told[1].note_sent("/blobs/sha256/1.1.0", 5, verdict.at_s + 0.1)
    assert "the rollback of 1.2.0 downloaded 5 bytes" in problems(evidence(*told))


def test_an_arm_that_is_not_commanded_fails_unless_it_is_held(told: Told) -> None:
    lost = next(r for r in told[0] if isinstance(r, PolicyStatus) and r.hold_reason == "WORKER_LOST")
    in_hold, before = CommandGap(lost.at_s + 0.1, 0.8), CommandGap(lost.at_s - 10.0, 0.8)
    assert problems(evidence([*told[0], in_hold], told[1])) == []
    assert "the arm got no command for 0.80 s" in problems(evidence([*told[0], before], told[1]))
    assert "the arm got no command at all" in problems(evidence(*told, commands=0))


def test_late_sensors_alone_are_no_fault_of_an_update_but_other_holds_are(told: Told) -> None:
    refused_s = next(r.at_s for r in told[0] if isinstance(r, ModelEvent) and r.to_state == "REJECTED")
    before = [r for r in told[0] if r.at_s < refused_s]
    last = next(r for r in reversed(before) if isinstance(r, PolicyStatus))
    for reason, expected in (
        ("OBSERVATION_STALE", []),
        ("STARVED", ["the policy did not act all the time while 1.1.1 was refused: STARVED"]),
    ):
        held = replace(last, at_s=last.at_s + 0.05, state=3, hold_reason=reason)
        at = before.index(last) + 1
        assert problems(evidence([*told[0][:at], held, *told[0][at:]], told[1])) == expected


def play_with(act: Callable[[Any], None], expect: Callable[[Any], list[str]]) -> tuple[list[str], list[str]]:
    lines: list[str] = []
    played: list[str] = []
    chapters = [Chapter("one", act, expect), Chapter("two", lambda stage: played.append("two"), lambda at: [])]
    stage: Any = SimpleNamespace(evidence=None)
    return play(chapters, stage, Timeline(lines.append)), played


def test_a_chapter_that_is_not_as_expected_is_named_and_the_story_goes_on() -> None:
    assert play_with(lambda stage: None, lambda at: ["this was wrong"]) == (["chapter 1: this was wrong"], ["two"])


@pytest.mark.parametrize("error", [WaitError("waited in vain"), DemoError("nobody there")])
def test_a_wait_in_vain_ends_the_story_and_names_what_is_left(error: Exception) -> None:
    def act(stage: Any) -> None:
        raise error

    assert play_with(act, lambda at: []) == ([f"chapter 1: {error}", "the last 1 chapters were not played"], [])
