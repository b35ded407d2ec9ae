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
