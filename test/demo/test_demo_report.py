"""The report says what the nodes reported: figures come from messages and from the server's counters alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from story_told import SIZE, evidence, tell_story
from vla_ota.msg import EpisodeOutcome as OutcomeMessage
from vla_ota.msg import ModelEvent, ModelStatus, PolicyStatus, SwapReport

from vla_sim.demo import journal as records_of
from vla_sim.demo.expectations import Evidence
from vla_sim.demo.journal import EpisodeOutcome, Journal, WaitError, from_message
from vla_sim.demo.report import holds, make_report, success_rates
from vla_sim.demo.timeline import Timeline, tables


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Evidence]:
    records, server = tell_story(tmp_path)
    yield evidence(records, server)
    server._server.server_close()


def test_the_report_has_every_key_and_can_be_written(told: Evidence) -> None:
    report = json.loads(json.dumps(make_report(told.journal, told.server)))
    assert set(report) >= {
        "control_rate_hz", "ticks", "missed_ticks", "starved_ticks", "swaps", "rollbacks", "rejected", "holds", "final_version",
    }  # fmt: skip
    swap = {"from", "to", "bytes_downloaded", "load_s", "warm_up_s", "swap_latency_s", "missed_ticks", "starved_ticks"}
    assert all(set(row) >= {*swap, "seam_jump"} for row in report["swaps"])
    rollback = {"from", "to", "cause", "warm", "detect_s", "duration_s", "bytes_downloaded"}
    assert all(set(row) >= rollback for row in report["rollbacks"])
    assert all(set(row) >= {"version", "error_code", "message"} for row in report["rejected"])
    assert all(set(row) >= {"cause", "duration_s"} for row in report["holds"])


def test_its_figures_are_the_reported_ones(told: Evidence) -> None:
    report = make_report(told.journal, told.server)
    last = told.journal.last(records_of.PolicyStatus)
    assert last is not None
    assert (report["ticks"], report["control_rate_hz"], report["final_version"]) == (last.ticks, 50.0, "1.4.0")
    way = [(row["from"], row["to"]) for row in report["swaps"]]
    assert way == [("", "1.0.0"), ("1.0.0", "1.1.0"), ("1.1.0", "1.2.0"), ("1.1.0", "1.3.0"), ("1.1.0", "1.4.0")]
    assert all(row["bytes_downloaded"] == SIZE for row in report["swaps"])
    bad, unwanted = report["rollbacks"]
    assert (bad["from"], bad["to"], bad["cause"], bad["bytes_downloaded"]) == ("1.2.0", "1.1.0", "SCORES_WORSE", 0)
    acted = next(s for s in told.journal.all(records_of.SwapReport) if s.to_version == "1.2.0")
    verdict = next(e for e in told.journal.all(records_of.ModelEvent) if e.to_state == "ROLLING_BACK")
    assert bad["detect_s"] == pytest.approx(verdict.at_s - acted.at_s, abs=1e-3)
    assert bad["duration_s"] == pytest.approx(0.3, abs=1e-3)
    assert (unwanted["from"], unwanted["cause"], unwanted["detect_s"]) == ("1.3.0", "OPERATOR", None)
    assert report["rejected"] == [{"version": "1.1.1", "error_code": "BLOB_DIGEST_MISMATCH", "message": "why"}]
    assert [hold["cause"] for hold in report["holds"]] == ["WORKER_LOST"]
    assert report["holds"][0]["duration_s"] == pytest.approx(1.8, abs=1e-3)


def test_an_empty_journal_makes_a_report_too(told: Evidence) -> None:
    report = make_report(Journal(), told.server)
    assert report["swaps"] == [] and report["final_version"] == "" and report["ticks"] == 0


def test_waiting_for_the_first_policy_is_no_hold_and_an_endless_one_is_told(told: Evidence) -> None:
    statuses = told.journal.all(records_of.PolicyStatus)
    assert statuses[0].holding
    assert len(holds(told.journal)) == 1
    told.journal.add(replace(statuses[-1], at_s=statuses[-1].at_s + 1, state=3, hold_reason="LIMIT"))
    assert (holds(told.journal)[-1].cause, holds(told.journal)[-1].duration_s) == ("LIMIT", None)


def test_an_episode_counts_for_a_version_only_if_it_is_its_own_and_known() -> None:
    journal = Journal()
    base = EpisodeOutcome(0.0, "e", "1.0.0", mixed=False, success=True, known=True, intervention=False)
    for outcome in (
        base,
        replace(base, success=False),
        replace(base, mixed=True),
        replace(base, known=False),
        replace(base, intervention=True),
        replace(base, version=""),
    ):
        journal.add(outcome)
    assert [(r.version, r.episodes, r.successes) for r in success_rates(journal)] == [("1.0.0", 3, 1)]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (records_of.PolicyStatus, PolicyStatus()),
        (records_of.SwapReport, SwapReport()),
        (records_of.ModelStatus, ModelStatus(blocked=["1.2.0"])),
        (records_of.ModelEvent, ModelEvent()),
        (records_of.EpisodeOutcome, OutcomeMessage()),
    ],
)
def test_records_have_the_fields_of_the_messages(kind: type, message: object) -> None:
    record = from_message(kind, message, 12.5)
    assert record.at_s == 12.5
    if isinstance(record, records_of.ModelStatus):
        assert record.blocked == ("1.2.0",)


def test_states_have_the_numbers_of_the_message() -> None:
    assert (records_of.POLICY_RUNNING, records_of.POLICY_HOLDING) == (
        PolicyStatus.STATE_RUNNING,
        PolicyStatus.STATE_HOLDING,
    )


def test_a_wait_ends_with_what_it_waited_for_and_why() -> None:
    journal = Journal()
    with pytest.raises(WaitError, match="s in vain for a miracle"):
        journal.wait(EpisodeOutcome, lambda o: True, "a miracle", 0.1)
    journal.give_up = lambda: "policy_node ended"
    with pytest.raises(WaitError, match="a miracle: policy_node ended"):
        journal.wait(EpisodeOutcome, lambda o: True, "a miracle", 30.0)


def test_the_timeline_has_a_line_an_event_and_the_tables_every_row(told: Evidence) -> None:
    lines: list[str] = []
    timeline = Timeline(lines.append)
    for record in told.journal._records:
        timeline.record(record)
    text = "\n".join(lines)
    for expected in (
        "1.1.1",
        "BLOB_DIGEST_MISMATCH",
        "SCORES_WORSE",
        "SIGKILL to the ota_manager",
        "holds: WORKER_LOST",
    ):
        assert expected in text
    assert "goes on after a hold of 1.80 s" in text
    table = "\n".join(tables(told.journal, told.server))
    for row in ("1.1.0  1.3.0", "1.2.0  1.1.0  SCORES_WORSE", "1.3.0  1.1.0  OPERATOR", "WORKER_LOST", "1 (100%)"):
        assert row in table
