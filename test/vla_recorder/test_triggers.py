# SPDX-License-Identifier: Apache-2.0
"""A recording is made for what went wrong, once, and not for an ordinary day."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vla_policy_node.holds import HOLDS
from vla_recorder.pictures import jpeg
from vla_recorder.triggers import HOLDING, MOTION_DISABLED, ORDINARY_HOLDS, RUNNING, Triggers


def status(state: int = RUNNING, reason: str = "", error_code: str = "", message: str = "why") -> Any:
    return SimpleNamespace(
        state=state, holding=bool(reason), hold_reason=reason, error_code=error_code, message=message
    )


def causes(*statuses: Any, apart_s: float = 1.0) -> list[str]:
    triggers = Triggers()
    found = [triggers.status(each, number * apart_s) for number, each in enumerate(statuses)]
    return [cause.name for cause in found if cause is not None]


@pytest.mark.parametrize("reason", HOLDS)
def test_every_hold_but_the_ordinary_ones_is_recorded_when_it_begins(reason: str) -> None:
    holding = status(HOLDING, reason)
    expected = [] if reason in ORDINARY_HOLDS else [f"hold-{reason.lower()}"]
    assert causes(status(), holding, holding, status()) == expected
    assert causes(status(), holding, status(), holding) == 2 * expected
    assert HOLDS.keys() > ORDINARY_HOLDS


def test_a_hold_that_gets_another_reason_is_another_one() -> None:
    assert causes(status(), status(HOLDING, "STARVED"), status(HOLDING, "WORKER_LOST")) == [
        "hold-starved",
        "hold-worker_lost",
    ]


@pytest.mark.parametrize(
    ("error_code", "message", "said"),
    [
        ("", "OBSERVATION_STALE: too old", "the robot holds, OBSERVATION_STALE: too old"),
        ("OBSERVATION_STALE", "too old", "the robot holds, OBSERVATION_STALE: too old"),
        ("LIMIT", "j1 jumps", "the robot holds, OBSERVATION_STALE; last error LIMIT: j1 jumps"),
    ],
)
def test_a_hold_is_not_explained_by_the_error_before_it(error_code: str, message: str, said: str) -> None:
    triggers = Triggers()
    triggers.status(status(), 0.0)
    cause = triggers.status(status(HOLDING, "OBSERVATION_STALE", error_code, message), 1.0)
    assert cause is not None and cause.text == said


@pytest.mark.parametrize(
    ("version", "error_code", "said"),
    [
        ("1.1.0", "SCORES_WORSE", "1.1.0 is rolled back: SCORES_WORSE back to 1.0.0"),
        ("", "", "what acted is rolled back: back to 1.0.0"),
    ],
)
def test_the_cause_of_a_rollback_names_the_version_where_the_event_does(
    version: str, error_code: str, said: str
) -> None:
    event = SimpleNamespace(to_state="ROLLING_BACK", version=version, error_code=error_code, message="back to 1.0.0")
    cause = Triggers().event(event)
    assert cause is not None and cause.text == said


def test_what_was_so_before_the_recorder_looked_is_no_event() -> None:
    assert causes(status(HOLDING, "LIMIT"), status(HOLDING, "LIMIT")) == []


def test_an_operator_s_stops_are_recorded_once_in_a_while() -> None:
    stops = [status(), status(MOTION_DISABLED)] * 10
    assert causes(*stops, apart_s=10.0) == ["motion-disabled"]
    assert causes(*stops, apart_s=100.0) == 5 * ["motion-disabled"]


def test_a_policy_node_that_falls_silent_is_recorded_once() -> None:
    triggers = Triggers()
    triggers.status(status(), 0.0)
    found = [triggers.silence(seconds) for seconds in (1.0, 2.9, 3.1, 3.2, 60.0)]
    assert [cause and cause.name for cause in found] == [None, None, "policy-silent", None, None]


@pytest.mark.parametrize(
    ("cause", "name"),
    [("UPDATE", None), ("ROLLBACK", "rollback"), ("LEASE_EXPIRED", "lease-expired"), ("WORKER_LOST", "worker-lost")],
)
def test_swaps_back_are_recorded_and_updates_are_not(cause: str, name: str | None) -> None:
    found = Triggers().report(SimpleNamespace(cause=cause, from_version="1.1.0", to_version="1.0.0"))
    assert (found and found.name) == name
    event = SimpleNamespace(to_state="ROLLING_BACK" if name else "TRIAL", version="1.1.0", error_code="", message="")
    assert (Triggers().event(event) is None) == (name is None)


@pytest.mark.parametrize(("encoding", "size"), [("rgb8", 3), ("bgr8", 3), ("rgba8", 4), ("bgra8", 4), ("mono8", 1)])
def test_a_picture_of_every_encoding_of_the_contract_is_kept_with_its_colours_and_without_its_padding(
    encoding: str, size: int
) -> None:
    rows = np.zeros((40, 60 * size + 5), np.uint8)
    pixels = rows[:, : 60 * size].reshape(40, 60, size)
    pixels[:, :, {"bgr8": 2, "bgra8": 2}.get(encoding, 0)] = 200  # red, or grey
    message = SimpleNamespace(encoding=encoding, height=40, width=60, step=rows.shape[1], data=rows.tobytes())
    data = jpeg(message, 90)
    assert data is not None
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    expected = (200, 200, 200) if encoding == "mono8" else (200, 0, 0)
    assert picture.shape == (40, 60, 3) and np.abs(picture - np.array(expected)).max() < 12


@pytest.mark.parametrize(
    "changed", [{"encoding": "32FC1"}, {"data": b""}, {"width": 0}, {"step": 1}, {"height": 10**6}]
)
def test_a_picture_that_cannot_be_kept_is_none(changed: dict[str, Any]) -> None:
    whole = {"encoding": "rgb8", "height": 4, "width": 4, "step": 12, "data": bytes(48)}
    assert jpeg(SimpleNamespace(**{**whole, **changed}), 90) is None
