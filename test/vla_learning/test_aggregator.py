# SPDX-License-Identifier: Apache-2.0
"""``FleetDataAggregator`` gives the summary that it always gave, and weights that keep what the summary says."""

from __future__ import annotations

import pytest

from vla_learning.datasets.aggregator import Correction, FleetDataAggregator
from vla_learning.errors import DataSetError


def test_the_summary_is_that_of_five_robots_with_a_hundred_episodes_each() -> None:
    aggregator = FleetDataAggregator()
    for robot in range(5):
        for number in range(100):
            aggregator.add_episode(f"robot_{robot}", None, None, number % 10 > 0)
    for number in range(20):
        aggregator.add_correction(f"robot_{number % 5}", None, None, None)
    found = aggregator.build_training_set()
    assert found["total_episodes"] == 500 and found["corrections"] == 20 and found["effective_corrections"] == 200
    assert found["robots_contributing"] == 5 and found["replay_ratio"] == 0.0, "nothing is old yet"
    assert sum(found["weights"]) == pytest.approx(520)


def test_old_samples_have_the_share_that_was_asked_for_and_new_corrections_ten_times_the_weight() -> None:
    aggregator = FleetDataAggregator()
    for _ in range(30):
        aggregator.add_episode("arm", None, None, True)
    aggregator.build_training_set()
    aggregator.add_episode("arm", None, None, False)
    aggregator.add_correction("arm", "seen", "wanted", "better")
    found = aggregator.build_training_set(old_data_ratio=0.6)
    weights = dict(zip(map(id, found["samples"]), found["weights"], strict=True))
    *old, new, correction = found["samples"]
    assert sum(weights[id(sample)] for sample in old) / sum(found["weights"]) == pytest.approx(0.6)
    assert isinstance(correction, Correction) and correction.corrected == "better"
    assert weights[id(correction)] == pytest.approx(10 * weights[id(new)])
    assert found["replay_ratio"] == 0.6 and 1 < found["effective_samples"] < 32


def test_a_robots_buffer_is_bounded_and_loses_failures_last() -> None:
    aggregator = FleetDataAggregator(max_buffer_per_robot=3)
    for success in (False, True, True, False, True, False, False):
        aggregator.add_episode("arm", None, None, success)
    assert [episode.number for episode in aggregator.buffers["arm"]] == [4, 6, 7]
    for number in range(10):
        aggregator.add_correction("arm", number, None, None)
    assert [correction.observation for correction in aggregator.correction_buffer] == [7, 8, 9]


def test_a_set_of_nothing_is_refused() -> None:
    aggregator = FleetDataAggregator()
    with pytest.raises(DataSetError, match="DATASET_NO_EPISODES"):
        aggregator.build_training_set()
    aggregator.add_episode("arm", None, None, True)
    aggregator.build_training_set()
    with pytest.raises(DataSetError, match="DATASET_NOTHING_NEW"):
        aggregator.build_training_set()
    with pytest.raises(ValueError, match="at least 1"):
        FleetDataAggregator(0)
