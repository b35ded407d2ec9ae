# SPDX-License-Identifier: Apache-2.0
"""States, messages and documentation say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vla_ota_manager.states import PIPELINE, RESTING, TRANSITIONS, UpdateState, check_transition
from vla_ros.fault import Fault

ROOT = Path(__file__).resolve().parents[2]


def documented() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", (ROOT / "docs/update_states.md").read_text(), re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def test_names_and_numbers_are_those_of_the_message() -> None:
    text = (ROOT / "msg/ModelStatus.msg").read_text()
    constants = {name: int(number) for name, number in re.findall(r"^uint8 STATE_(\w+)=(\d+)", text, re.MULTILINE)}
    assert constants == {state.name: state.value for state in UpdateState}


@pytest.mark.parametrize("file", ["srv/SwapModel.srv", "action/PrepareModel.action"])
def test_the_faults_of_a_reply_are_those_of_the_interface(file: str) -> None:
    constants = re.findall(r"^uint8 FAULT_(\w+)=(\d+)", (ROOT / file).read_text(), re.MULTILINE)
    assert {name: int(number) for name, number in constants} == {fault.name: fault.value for fault in Fault}


def test_every_state_has_a_full_row_with_the_transitions_of_the_code() -> None:
    rows = documented()
    assert set(rows) == {state.name for state in UpdateState}
    for state, followers in TRANSITIONS.items():
        on_disk, crash, says, following = rows[state.name]
        assert on_disk and crash and says
        assert {name.strip() for name in following.split(",")} == {follower.name for follower in followers}, state.name


def test_every_way_leads_to_a_state_in_which_an_update_may_end() -> None:
    assert set(TRANSITIONS) == set(UpdateState)
    for state in UpdateState:
        seen, frontier = {state}, {state}
        while frontier:
            frontier = {follower for at in frontier for follower in TRANSITIONS[at]} - seen
            seen |= frontier
        assert seen & (RESTING - {UpdateState.INSTALLED})


def test_nothing_after_the_swap_can_be_cancelled() -> None:
    for state in (UpdateState.SWAPPING, UpdateState.TRIAL, UpdateState.ROLLING_BACK):
        assert state not in PIPELINE and UpdateState.CANCELLED not in TRANSITIONS[state]
    for state in PIPELINE:
        assert UpdateState.CANCELLED in TRANSITIONS[state]


def test_a_transition_that_the_table_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="TRIAL to FETCHING"):
        check_transition(UpdateState.TRIAL, UpdateState.FETCHING)
