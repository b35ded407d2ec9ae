"""Episodes: one at a time, ended once, by its own name, by somebody or by time."""

from __future__ import annotations

import pytest

from vla_policy_node.episodes import EpisodeError, Episodes


def refusal(call: object) -> str:
    assert callable(call)
    with pytest.raises(EpisodeError) as caught:
        call()
    return caught.value.code


def test_an_outcome_says_who_acted_how_it_ended_and_how_long_it_took() -> None:
    episodes = Episodes()
    episodes.acted(7)  # before it began: does not count
    episodes.start("one", "reach", 10.0, 100.0)
    for generation in (0, 1, 1):  # 0 = nothing acted
        episodes.acted(generation)
    outcome = episodes.end("one", 103.5, success=True, intervention=True)
    assert (outcome.episode_id, outcome.instruction, outcome.duration_s) == ("one", "reach", 3.5)
    assert (outcome.success, outcome.known, outcome.intervention, outcome.mixed) == (True, True, True, False)
    episodes.start("two", "reach", 10.0, 200.0)
    for generation in (1, 2):
        episodes.acted(generation)
    assert episodes.end("", 201.0, success=False).mixed


def test_what_nobody_said_is_never_a_success() -> None:
    episodes = Episodes()
    episodes.start("one", "", 10.0, 0.0)
    outcome = episodes.end("", 11.0, success=True, known=False)
    assert not outcome.success and not outcome.known


def test_an_episode_is_overdue_after_its_time_and_only_while_it_is_open() -> None:
    episodes = Episodes()
    assert not episodes.overdue(1e9)
    episodes.start("", "", 10.0, 100.0)
    assert not episodes.overdue(110.0) and episodes.overdue(110.1)
    episodes.end("", 111.0, success=False)
    assert not episodes.overdue(1e9)


@pytest.mark.parametrize("name", [" ", "a b", "../x", "é", "a\n", "a\0", "x" * 129])
def test_a_name_that_could_hurt_elsewhere_is_refused_and_opens_nothing(name: str) -> None:
    episodes = Episodes()
    assert refusal(lambda: episodes.start(name, "", 1.0, 0.0)) == "EPISODE_ID_INVALID"
    assert episodes.open is None


def test_episodes_do_not_overlap_and_end_by_their_own_name() -> None:
    episodes = Episodes()
    assert refusal(lambda: episodes.end("", 0.0, success=True)) == "NO_EPISODE"
    first = episodes.start("", "", 1.0, 0.0)
    assert first.episode_id
    assert refusal(lambda: episodes.start("two", "", 1.0, 0.0)) == "EPISODE_OPEN"
    assert refusal(lambda: episodes.end("two", 0.0, success=True)) == "WRONG_EPISODE"
    assert episodes.open is first
    episodes.end(first.episode_id, 0.0, success=True)
    assert episodes.start("", "", 1.0, 0.0).episode_id != first.episode_id
