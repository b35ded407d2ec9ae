# SPDX-License-Identifier: Apache-2.0
"""The two exercises: an answer, plots, the same for the same seed; rollouts are those of the judge itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vla_evidence.canary.config import DEFAULT_STAGES, CanaryConfig, Stage
from vla_evidence.planning.stopping import Stopping, batches, detection_times, share_and_error
from vla_evidence.sequential.intervals import wilson_interval
from vla_evidence.sequential.two_sample import TwoSampleEProcess
from vla_evidence.simulate import ab, canary, rollouts
from vla_evidence.simulate.fleet import FleetModel
from vla_evidence.simulate.report import Report, finite
from vla_evidence.simulate.rules import intervals_apart, should_advance, wilson_ends, z_test

PNG = b"\x89PNG\r\n\x1a\n"
SMALL_AB = ab.Settings(robots=10, rate_a=0.7, rate_b=0.9, runs=60, seed=3)
SMALL_CANARY = canary.Settings(robots=10, per_hour=20.0, runs=20, seed=3)


@pytest.fixture(scope="module")
def ab_report() -> Report:
    return ab.run(SMALL_AB)


@pytest.fixture(scope="module")
def canary_report() -> Report:
    return canary.run(SMALL_CANARY)


@pytest.mark.parametrize("name", ["ab", "canary"])
def test_an_exercise_gives_a_sentence_tables_figures_and_plots(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    report = request.getfixturevalue(f"{name}_report")
    files = report.write(tmp_path / "deep" / "folder")
    assert report.text.startswith(report.sentence) and report.sentence.count(".") >= 1 and "\n" not in report.sentence
    assert "±" in report.text
    pngs = [path for path in files if path.suffix == ".png"]
    assert len(pngs) >= 2
    for path in pngs:
        assert path.read_bytes()[:8] == PNG and 5_000 < path.stat().st_size < 150_000
    document = json.loads((tmp_path / "deep" / "folder" / f"{name}.json").read_text())
    assert document["sentence"] == report.sentence and document["settings"]["seed"] == 3


def test_an_exercise_and_its_plots_are_the_same_for_the_same_seed(ab_report: Report, tmp_path: Path) -> None:
    again = ab.run(SMALL_AB)
    assert again.text == ab_report.text
    files, others = ab_report.write(tmp_path / "a"), again.write(tmp_path / "b")
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in others]


def test_a_drop_that_is_not_always_found_is_said_to_be_so() -> None:
    times = np.array([50.0, 70.0, 90.0, np.inf])
    detection = canary.Detection("canary", DEFAULT_STAGES[0], Stopping(times, 800, 20.0 * times))
    words = canary._found(detection.stopping)
    assert words.startswith("within 800 canary episodes in 75.0% ± ") and "(those after 70.0 ± 11.5" in words
    assert "in the others it is not" in words
    assert finite(detection.figures(SMALL_CANARY))["canary_episodes"]["p50_p90"] == [70.0, None]


def test_ours_keeps_its_promise_where_looking_again_and_again_breaks_that_of_the_others(ab_report: Report) -> None:
    rules = {(rule["rule"], rule["looks"]): rule for rule in ab_report.figures["paired"]}
    share, error = rules["exact sign test", "every round"]["false_alarm"]
    assert share <= 0.05 + 3 * error
    assert (
        rules["z test of episodes", "every round"]["false_alarm"][0]
        > rules["z test of episodes", "one"]["false_alarm"][0]
    )


def test_a_rollout_ends_as_the_judge_decides_and_when() -> None:
    stages = (
        Stage("first", 1.0, 0.3, 36000.0, 0.15),
        Stage("second", 1.0, 0.5, 36000.0, 0.05),
        Stage("full", 1.0, 1.0, 0.0, None),
    )
    config, rng = CanaryConfig(stages=stages, min_episodes=20), np.random.default_rng(1)
    bad, good = (
        rollouts.judged(FleetModel(20), (0.87, rate), 10.0, config, 12, rng, lambda done: None) for rate in (0.4, 0.95)
    )
    assert bad.share(rollouts.ROLLED_BACK) == 1.0 == bad.found_in_first_stage() and (bad.hours < 10.0).all()
    assert good.share(rollouts.FULL) >= 0.7
    assert set(good.hours[good.outcome == 2].tolist()) <= {20.0, 30.0, 40.0}  # each stage may be prolonged once


@pytest.mark.parametrize("earlier", [(), ((0.2, 50), (0.5, 40))])
def test_detection_times_are_those_of_the_e_process_one_by_one(earlier: tuple[tuple[float, int], ...]) -> None:
    """In distribution: each figure of 400 runs, by both ways."""
    found = detection_times(
        0.9, 0.5, 0.3, alpha=0.05, horizon=60, runs=400, rng=np.random.default_rng(7), earlier=earlier
    )
    rng, times = np.random.default_rng(8), []
    for _ in range(400):
        process, exposed, at = TwoSampleEProcess(), 0, np.inf
        for share, units in earlier:
            for group in rng.random(units) < share:
                process.update(int(group), float(rng.random() < 0.9), share)
            process.restart()
        for _unit in range(200):
            group = int(rng.random() < 0.3)
            exposed += group
            if process.update(group, float(rng.random() < (0.5 if group else 0.9)), 0.3) >= math.log(20.0):
                at = exposed
                break
        times.append(at)
    assert np.isfinite(times).mean() == pytest.approx(found.decided[0], abs=0.08)
    assert np.median(times) == pytest.approx(float(np.median(found.times)), abs=3.0)


def test_robots_differ_by_the_icc_asked_for_and_keep_their_rank() -> None:
    rates = FleetModel(200, 0.1).rates((0.87, 0.75), 50, np.random.default_rng(0))
    for mean, values in zip((0.87, 0.75), rates, strict=True):
        assert values.mean() == pytest.approx(mean, abs=0.01)
        assert values.var() == pytest.approx(0.1 * mean * (1 - mean), rel=0.1)
    assert (np.argsort(rates[0], axis=1) == np.argsort(rates[1], axis=1)).mean() > 0.99
    assert (FleetModel(3).rates((0.87, 0.75), 2, np.random.default_rng(0))[1] == 0.75).all()


def test_the_rules_for_comparison_are_those_they_are_said_to_be() -> None:
    low, high = wilson_ends(435.0, 500.0)
    assert (low, high) == (
        pytest.approx(wilson_interval(435, 500)[0], abs=1e-5),
        pytest.approx(wilson_interval(435, 500)[1], abs=1e-5),
    )
    apart = intervals_apart(
        np.array([80.0, 60.0, 8.0]), np.array([100, 100, 10]), np.array([85.0, 85.0, 1.0]), np.array([100, 100, 10])
    )
    assert apart.tolist() == [False, True, False]  # the last: fewer than 100 samples
    assert z_test(np.array([60.0]), 100, np.array([75.0]), 100).tolist() == [True]
    assert z_test(np.array([60.0]), 100, np.array([73.0]), 100).tolist() == [False]
    enough, advance = should_advance(
        np.array([42.0, 43.0, 9.0]), np.array([50, 50, 10]), np.array([870.0] * 3), np.array([1000] * 3)
    )
    assert enough.tolist() == [True, True, False] and advance.tolist() == [False, True, False]


def test_batches_add_up_and_stay_small() -> None:
    assert list(batches(10, 1 << 19)) == [2, 2, 2, 2, 2]
    assert sum(batches(7, 1 << 22)) == 7 and max(batches(7, 1 << 22)) == 1
    share, error = share_and_error(0.0, 100)
    assert share == 0.0 and error > 0.01
