# SPDX-License-Identifier: Apache-2.0
"""A person can follow the log: each latched hold and its end is a line, a policy that starves all the time is not a flood."""

from __future__ import annotations

import logging

import pytest

from vla_policy_node.journal import Journal


def hold(reason: str, *, latched: bool) -> dict[str, object]:
    return {"type": "HOLD", "reason": reason, "latched": latched, "message": "why"}


@pytest.mark.parametrize(("reason", "latched", "expected"), [("STARVED", False, 1), ("LIMIT", True, 5)])
def test_a_hold_that_needs_a_person_is_always_logged_and_one_that_passes_is_not_a_flood(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, reason: str, latched: bool, expected: int
) -> None:
    monkeypatch.setattr(logging.getLogger("vla_policy_node"), "propagate", True)
    journal = Journal()
    with caplog.at_level(logging.INFO, "vla_policy_node"):
        for _ in range(5):
            journal.note(hold(reason, latched=latched), "1.0.0")
            journal.note({"type": "RESUMED", "reason": reason, "held_s": 0.1}, "1.0.0")
    until = " (until resume)" if latched else ""
    assert (
        caplog.messages
        == [f"hold: {reason}{until}: why", f"1.0.0 acts: the hold {reason} is over after 0.1 s"] * expected
    )


def test_who_commands_is_said_once_whenever_it_changes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("vla_policy_node"), "propagate", True)
    journal = Journal()
    with caplog.at_level(logging.INFO, "vla_policy_node"):
        for kind in ("GIVEN_BACK", "TAKEN_OVER", "TAKEN_OVER"):
            journal.note({"type": kind}, "1.0.0")
        journal.note(hold("NO_OPERATOR_ACTION", latched=False), "1.0.0")
        journal.note({"type": "RESUMED", "reason": "NO_OPERATOR_ACTION", "held_s": 0.1}, "1.0.0")
        journal.note({"type": "GIVEN_BACK"}, "1.0.0")
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "an operator has taken over",
        "hold",
        "the operator acts",
        "the operator has given back",
    ]
