# SPDX-License-Identifier: Apache-2.0
"""The judge commits what is as good, rolls back what is worse, and says on what grounds; it never decides on foreign evidence."""

from __future__ import annotations

import math
import random

import pytest

from vla_ota_manager.config import OtaConfig
from vla_ota_manager.port import PolicySnapshot
from vla_ota_manager.records import EpisodeResult, Score
from vla_ota_manager.trial.calibration import Acting, BlockBuilder, Calibration, Collector
from vla_ota_manager.trial.judge import Decision, TrialJudge

CONFIG = OtaConfig(
    store_dir="/unused", min_trial_time_s=0.0, min_trial_chunks=200, min_trial_episodes=20, block_chunks=2
)
SWAP = 100.0


def snapshot(**fields) -> PolicySnapshot:
    return PolicySnapshot(
        **{"age_s": 0.0, "boot_id": "b", "generation": 2, "active_digest": "d", "on_trial": True, **fields}
    )


def score(value: float, source: str = "tce", **fields) -> Score:
    return Score(
        **{
            "source": source, "value": value, "stamp_s": SWAP + 1, "version": "1.1.0", "generation": 2, "boot_id": "b",
            **fields,
        }
    )  # fmt: skip


def episode(success: bool, number: int = 0, **fields) -> EpisodeResult:
    return EpisodeResult(**{
        "episode_id": f"e{number}", "success": success, "stamp_s": SWAP + 1, "version": "1.1.0", "generation": 2,
        "boot_id": "b", **fields,
    })  # fmt: skip


def incumbent(rng: random.Random, blocks: int = 100, episodes: int = 60, rate: float = 0.9) -> Calibration:
    calibration = Calibration.empty(CONFIG)
    for _ in range(blocks):
        calibration.add_block("tce", max(rng.gauss(0, 1), rng.gauss(0, 1)))  # of blocks of two chunks
    for _ in range(episodes):
        calibration.add_episode(rng.random() < rate)
    return calibration


def judge_of(calibration: Calibration | None = None, config: OtaConfig = CONFIG, *, first: bool = False) -> TrialJudge:
    judge = TrialJudge(config, calibration, first_install=first)
    judge.begin(Acting("1.1.0", 2, "b", SWAP), "d", 0.0)
    judge.observe(snapshot(), 0.0)
    return judge


def look_for(judge: TrialJudge, silence_s: float, since_s: float = 0.0) -> None:
    """The judge looks every half second at a policy node that has been silent since ``since_s``."""
    for n in range(1, int(silence_s / 0.5) + 1):
        judge.observe(snapshot(age_s=n * 0.5), since_s + n * 0.5)


def run_trial(
    judge: TrialJudge, rng: random.Random, shift: float, rate: float, limit: int = 4000
) -> tuple[Decision, str, int]:
    """Feed chunks of 8 to an episode until the judge decides; return decision, code and chunks it took."""
    for chunk in range(1, limit):
        judge.add(score(rng.gauss(shift, 1), episode_id=f"e{chunk // 8}"))
        if chunk % 8 == 7:
            judge.add(episode(rng.random() < rate, chunk // 8))
        verdict = judge.verdict()
        if verdict.decision is not Decision.CONTINUE:
            return verdict.decision, verdict.code, chunk
    return Decision.CONTINUE, "", limit


def test_false_rollbacks_stay_below_alpha_and_bad_versions_are_found() -> None:
    """Trials in full: random calibration, block maxima of two chunks of the incumbent's own distribution, outcomes."""
    rng = random.Random(0)
    runs, false, chunks = 150, 0, []
    for _ in range(runs):
        calibration = Calibration.empty(CONFIG)
        collector = Collector(CONFIG, calibration, Acting("1.0.0", 1, "b", 0.0))
        for n in range(200):
            collector.add(score(rng.gauss(0, 1), version="1.0.0", generation=1, episode_id=f"e{n // 8}"))
        for n in range(40):
            collector.add(episode(rng.random() < 0.9, n, version="1.0.0", generation=1))
        assert len(calibration.blocks["tce"]) == 100 and calibration.episodes == 40
        false += run_trial(judge_of(calibration), rng, 0.2, 0.9)[0] is Decision.ROLLBACK
        decision, code, taken = run_trial(judge_of(calibration), rng, 3.0, 0.9)
        assert (decision, code) == (Decision.ROLLBACK, "SCORES_WORSE")
        chunks.append(taken)
    assert false / runs <= CONFIG.alpha + 3 * math.sqrt(CONFIG.alpha * (1 - CONFIG.alpha) / runs)
    assert sorted(chunks)[runs * 9 // 10] <= 40  # with a chunk every 0.5 s: 20 s


def test_what_arrives_before_the_first_look_counts_as_exposure() -> None:
    """An episode of milliseconds may be over before the judge first hears that the version acts on trial."""
    judge = TrialJudge(CONFIG, incumbent(random.Random(3)))
    judge.begin(Acting("1.1.0", 2, "b", SWAP), "d", 0.0)
    judge.observe(snapshot(), 0.0, [episode(True, n) for n in range(10)])
    assert judge.verdict().progress == 10 / CONFIG.min_trial_episodes


def test_failed_tasks_reject_a_version_whose_scores_look_fine() -> None:
    rng = random.Random(1)
    decision, code, taken = run_trial(judge_of(incumbent(rng)), rng, 0.0, 0.0)
    assert (decision, code) == (Decision.ROLLBACK, "SUCCESS_WORSE")
    assert taken <= 15 * 8


def test_a_harmless_shift_is_committed() -> None:
    rng = random.Random(2)
    decisions = [run_trial(judge_of(incumbent(rng)), rng, 0.3, 0.9)[0] for _ in range(40)]
    assert decisions.count(Decision.COMMIT) >= 38


def test_without_exposure_it_stays_open_and_says_so() -> None:
    judge = judge_of(incumbent(random.Random(0)))
    for now in range(1000):
        judge.observe(snapshot(), float(now))
    verdict = judge.verdict()
    assert (verdict.decision, verdict.progress) == (Decision.CONTINUE, 0.0)
    assert "no exposure yet" in verdict.message


def test_time_in_motion_is_part_of_the_exposure_and_stands_still_in_a_hold() -> None:
    config = OtaConfig(store_dir="/unused", min_trial_time_s=10.0, min_trial_chunks=5, min_trial_episodes=0)
    judge = judge_of(None, config)
    for _ in range(5):
        judge.add(score(0.0))
    for now in range(30):
        judge.observe(snapshot(holding=True, hold_reason="STARVED"), now * 0.5)
        judge.observe(snapshot(running=False), now * 0.5)
    assert judge.verdict().progress == 0.0
    for now in range(30, 55):
        judge.observe(snapshot(), now * 0.5)
    assert judge.verdict().decision is Decision.COMMIT


@pytest.mark.parametrize(
    ("evidence", "code"),
    [
        (lambda judge: judge.add(score(1.0, "hard_limit")), "HARD_LIMIT"),
        (lambda judge: judge.add(score(math.nan)), "HARD_LIMIT"),
        (lambda judge: judge.observe(snapshot(holding=True, hold_reason="NAN"), 1.0), "HARD_LIMIT"),
        (lambda judge: judge.observe(snapshot(holding=True, hold_reason="POLICY_FAILED"), 1.0), "HARD_LIMIT"),
        (lambda judge: look_for(judge, 6.0), "HEARTBEAT_LOST"),
        (lambda judge: [judge.observe(None, n * 0.5) for n in range(14)], "HEARTBEAT_LOST"),
    ],
)
def test_hard_evidence_decides_at_once_even_at_full_exposure(evidence, code: str) -> None:
    judge = judge_of()
    for _ in range(500):
        judge.add(score(0.0))
    assert judge.verdict().decision is Decision.COMMIT
    evidence(judge)
    verdict = judge.verdict()
    assert (verdict.decision, verdict.code, verdict.at_once) == (Decision.ROLLBACK, code, True)


@pytest.mark.parametrize(
    "unseen",
    [{"age_s": 4.0}, {"on_trial": False}, {"active_digest": "other"}, {"generation": 1}],
    ids=["silent", "not on trial", "another bundle", "another generation"],
)
def test_nothing_counts_and_nothing_is_committed_unless_the_policy_node_says_that_it_acts_on_trial(
    unseen: dict,
) -> None:
    config = OtaConfig(store_dir="/unused", min_trial_time_s=10.0, min_trial_chunks=5, min_trial_episodes=0)
    judge = judge_of(None, config)
    for n in range(30):
        judge.observe(snapshot(**unseen), 0.5 * n)
        judge.add(score(0.0))
        judge.add(episode(True, n))
    verdict = judge.verdict()
    assert (verdict.decision, verdict.progress) == (Decision.CONTINUE, 0.0) and "nothing counts" in verdict.message
    for n in range(30, 60):
        judge.observe(snapshot(), 0.5 * n)
        judge.add(score(0.0))
    assert judge.verdict().decision is Decision.COMMIT
    judge.observe(snapshot(**unseen), 30.0)
    assert judge.verdict().decision is Decision.CONTINUE


def test_a_manager_that_slept_itself_does_not_take_that_for_silence_of_the_policy_node() -> None:
    judge = judge_of()
    judge.observe(snapshot(age_s=7.0), 7.0)
    assert judge.verdict().decision is Decision.CONTINUE
    look_for(judge, CONFIG.heartbeat_timeout_s, since_s=7.0)
    assert judge.verdict().decision is Decision.CONTINUE
    for n in range(3):
        judge.observe(snapshot(age_s=13.0 + n), 12.5 + n * 0.5)
    assert judge.verdict().code == "HEARTBEAT_LOST"


@pytest.mark.parametrize("reason", ["STARVED", "OBSERVATION_STALE", "OPERATOR", "MOTION_REENABLED", "NO_EPISODE"])
def test_holds_that_say_nothing_about_the_version_do_not_reject_it(reason: str) -> None:
    judge = judge_of()
    judge.observe(snapshot(holding=True, hold_latched=True, hold_reason=reason), 1.0)
    assert judge.verdict().decision is Decision.CONTINUE


@pytest.mark.parametrize(
    "foreign",
    [{"generation": 1}, {"boot_id": "the boot before"}, {"version": "1.0.0"}],
)
def test_scores_of_before_the_swap_or_of_others_are_dropped_and_counted(foreign: dict) -> None:
    judge = judge_of(incumbent(random.Random(0)))
    for n in range(300):
        judge.add(score(50.0, **foreign))
        judge.add(episode(False, n, **foreign))
    judge.add(score(1.0, "hard_limit", **foreign))
    verdict = judge.verdict()
    assert (verdict.decision, verdict.progress) == (Decision.CONTINUE, 0.0)
    assert "601 scores or outcomes" in verdict.message


def test_stamps_decide_only_where_the_source_gives_no_generation() -> None:
    early = {"stamp_s": SWAP - 3600.0}
    judge = judge_of(incumbent(random.Random(0)))
    for _ in range(300):
        judge.add(score(50.0, "tce", generation=0, **early))
        judge.add(score(50.0, "tce", generation=0, version="", **early))
    assert judge.verdict().decision is Decision.CONTINUE and "600 scores or outcomes" in judge.verdict().message
    for n in range(60):
        judge.add(episode(False, n, **early))
    assert judge.verdict().code == "SUCCESS_WORSE"
    for evidence in ({"source": "hard_limit"}, {"source": "tce", "value": math.nan}):
        judge = judge_of(incumbent(random.Random(0)))
        judge.add(score(**{"value": 1.0, **evidence, **early}))
        assert judge.verdict().code == "HARD_LIMIT"


@pytest.mark.parametrize(
    "foreign",
    [
        {"value": math.nan, "source": "vibration"},
        {"value": math.inf, "source": "vibration", "version": "", "generation": 0},
        {"value": math.nan, "version": "", "generation": 0},
        {"value": 1.0, "source": "hard_limit", "generation": 0},
        {"value": 1.0, "source": "hard_limit", "version": ""},
        {"value": math.nan, "source": "hard_limit", "version": "", "generation": 0},
        {"value": 1.0, "source": ""},
    ],
)
def test_a_failing_monitor_rejects_no_version_and_only_the_policy_node_says_hard_limit(foreign: dict) -> None:
    judge = judge_of(incumbent(random.Random(0)))
    for _ in range(300):
        judge.add(score(**foreign))
    verdict = judge.verdict()
    assert (verdict.decision, verdict.progress) == (Decision.CONTINUE, 0.0)
    assert "300 scores or outcomes" in verdict.message


def test_episodes_of_mixed_generations_or_unknown_end_count_for_nobody_an_intervention_is_a_failure() -> None:
    judge = judge_of(incumbent(random.Random(0)))
    for n in range(50):
        judge.add(episode(False, n, mixed=True))
        judge.add(episode(False, n, known=False))
    assert judge.verdict().progress == 0.0
    for n in range(50):
        judge.add(episode(True, n, intervention=True))
    assert judge.verdict().code == "SUCCESS_WORSE"


def test_an_uncalibrated_source_cannot_reject_and_is_named() -> None:
    judge = judge_of(incumbent(random.Random(0), blocks=20, episodes=0))
    for _ in range(190):
        judge.add(score(1e6))
    verdict = judge.verdict()
    assert verdict.decision is Decision.CONTINUE
    assert "not judged: tce (20 of 27" in verdict.message and "success (incumbent: 0 of 0" in verdict.message


@pytest.mark.parametrize(
    ("calibration", "loud"),
    [
        (incumbent(random.Random(0), episodes=0), ""),  # a robot without episodes: its scores were judged
        (incumbent(random.Random(0), blocks=20), "tce (20 of 27 observations to calibrate it)"),
        (incumbent(random.Random(0), blocks=0, episodes=0), "success (incumbent: 0 of 0 episodes)"),
    ],
)
def test_a_commit_says_first_what_could_not_have_rejected_the_version(calibration: Calibration, loud: str) -> None:
    judge, rng = judge_of(calibration), random.Random(1)
    assert run_trial(judge, rng, 0.0, 0.9)[0] is Decision.COMMIT
    verdict = judge.verdict()
    assert verdict.unjudged == loud
    assert verdict.message.startswith(f"committed WITHOUT A JUDGEMENT of {loud}; ") == bool(loud)


def test_only_the_sources_that_are_named_may_reject() -> None:
    config = OtaConfig(store_dir="/unused", block_chunks=2, score_sources=("reversal",))
    judge = judge_of(incumbent(random.Random(0), episodes=0), config)
    for _ in range(100):
        judge.add(score(1e6))
    assert judge.verdict().decision is Decision.CONTINUE


def test_more_sources_demand_more_evidence_of_each() -> None:
    """Bonferroni: with many calibrated sources one of them needs more exceedances than alone."""

    def needed(sources: int) -> int:
        rng = random.Random(3)
        calibration = Calibration.empty(CONFIG)
        for index in range(sources):
            for _ in range(400):
                calibration.add_block(f"s{index}", rng.gauss(0, 1))
        judge = judge_of(calibration)
        for count in range(1, 200):
            judge.add(score(100.0, "s0"))
            if judge.verdict().decision is Decision.ROLLBACK:
                return count
        raise AssertionError

    assert needed(1) < needed(20)


def test_evidence_that_leans_against_a_version_delays_its_commit() -> None:
    judge = judge_of(incumbent(random.Random(0), episodes=0))
    for index in range(204):
        judge.add(score(10.0 if index >= 200 else -5.0))
    assert judge.verdict().decision is Decision.COMMIT  # a few after many good ones weigh little
    judge = judge_of(
        incumbent(random.Random(0), episodes=0),
        OtaConfig(store_dir="/x", min_trial_chunks=4, block_chunks=2, min_trial_time_s=0.0),
    )
    for _ in range(4):
        judge.add(score(10.0))
    verdict = judge.verdict()
    assert verdict.decision is Decision.CONTINUE and "leans against" in verdict.message


def test_a_first_install_needs_clean_chunks_in_a_row() -> None:
    judge = judge_of(first=True)
    for _ in range(CONFIG.first_install_chunks - 1):
        judge.add(score(1.0))
    judge.observe(snapshot(holding=True, hold_reason="STARVED"), 1.0)
    judge.add(score(1.0))
    assert judge.verdict().decision is Decision.CONTINUE
    for _ in range(CONFIG.first_install_chunks - 1):
        judge.add(score(1.0))
    assert judge.verdict().decision is Decision.COMMIT


def test_scores_of_an_external_monitor_do_not_count_as_chunks_when_the_policy_has_its_own() -> None:
    judge = judge_of()
    judge.add(score(0.1))
    for _ in range(1000):
        judge.add(score(0.1, "vibration"))
    assert judge.verdict().decision is Decision.CONTINUE


def test_a_judge_goes_on_where_another_one_was() -> None:
    rng = random.Random(0)
    calibration = incumbent(rng)
    first = judge_of(calibration)
    for n in range(10):
        first.add(score(5.0))
        first.add(episode(False, n))
    second = judge_of(calibration)
    second.restore(first.to_json())
    assert second.verdict().message == first.verdict().message
    third = judge_of(incumbent(random.Random(9), episodes=30))
    third.restore(first.to_json())  # other tests: their counts do not fit
    assert "0 of 0 blocks" in third.verdict().message
    for nonsense in ({}, {"episodes": "x"}, {**first.to_json(), "scores": {"tce": [1]}}):
        judge_of(calibration).restore(nonsense)


def test_blocks_take_the_largest_of_consecutive_chunks_and_never_span_episodes() -> None:
    builder = BlockBuilder(3)
    values = [
        builder.add(score(v, episode_id=e))
        for v, e in ((1, "a"), (3, "a"), (2, "a"), (9, "a"), (1, "b"), (2, "b"), (4, "b"))
    ]
    assert values == [None, None, 3, None, None, None, 4]
    by_episode = BlockBuilder(0)
    assert [by_episode.add(score(v, episode_id="a")) for v in (1, 5, 2)] == [None] * 3
    assert by_episode.end_episode("other") == {}
    assert by_episode.end_episode("a") == {"tce": 5}
    by_episode.add(score(7, episode_id="b"))
    assert by_episode.add(score(1, episode_id="c")) == 7


def test_calibration_survives_its_json_and_is_bounded() -> None:
    calibration = incumbent(random.Random(0), blocks=2000)
    assert len(calibration.blocks["tce"]) == CONFIG.calibration_samples
    again = Calibration.from_json(calibration.to_json(), CONFIG)
    assert again.to_json() == calibration.to_json()
    other = OtaConfig(store_dir="/unused", block_chunks=7)
    assert Calibration.from_json(calibration.to_json(), other).blocks == {}
    for nonsense in ({}, {"episodes": 1, "successes": 2, "block_chunks": 2, "blocks": {}}, {"blocks": 3}):
        assert Calibration.from_json(nonsense, CONFIG).episodes == 0
    for index in range(100):
        calibration.add_block(f"s{index}", 1.0)
    assert len(calibration.blocks) == 32
