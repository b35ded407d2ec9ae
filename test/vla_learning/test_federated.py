# SPDX-License-Identifier: Apache-2.0
"""Exercise 4 in a few steps of training: everything is done, and only what it says differs between the ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from support.refusals import refused

from vla_learning.simulate.federated import JOBS, WAYS, Settings, average, make_base, run
from vla_learning.simulate.federated_jobs import ROBOTS, WORDS, site_episode
from vla_learning.simulate.federated_plot import ALONE, AVERAGED, AVERAGED_ALIKE, BASE, CENTRAL, EXACT
from vla_learning.workers import Workers
from vla_sim.arm import BLOCK_COLOURS, Arm
from vla_sim.bundle import SHIPPED_BUNDLE, load_policy
from vla_sim.observation import observe

pytestmark = pytest.mark.long


def test_the_exercise_compares_every_way_on_the_same_episodes_and_writes_its_plot(tmp_path: Path) -> None:
    settings = Settings(rounds=1, steps=2, episodes=1, trials=3, rank=2)
    ticks: list[int] = []

    class Bar:
        def __init__(self, label: str, steps: int) -> None:
            self.steps = steps

        def __enter__(self) -> object:
            return ticks.append

        def __exit__(self, *_: object) -> None:
            assert sum(ticks) == self.steps

    report = run(settings, Bar)  # type: ignore[arg-type]
    figures = report.figures
    for score in [*figures["scores"].values(), *(scores[-1] for scores in figures["rounds"].values())]:
        assert score["new"][1] + score["old"][1] in (3, 3 * ROBOTS)
    assert list(figures["scores"]) == [BASE, ALONE, CENTRAL] and list(figures["rounds"]) == list(WAYS)
    assert 0 < figures["exactness"] < 1e-6
    up, down = figures["up"], figures["down"]
    assert up[EXACT] == up[AVERAGED] == up[AVERAGED_ALIKE] and down[EXACT] > 3 * down[AVERAGED]
    assert up[CENTRAL] == figures["episode_bytes"] > 0
    files = {path.name for path in report.write(tmp_path)}
    assert files == {"federated_success.png", "federated_bytes.png", "federated.json"}
    assert json.loads((tmp_path / "federated.json").read_text())["sentence"] == report.sentence
    assert all(way in report.text for way in (BASE, ALONE, CENTRAL, *WAYS))


def test_the_base_acts_as_the_shipped_policy_and_has_the_new_words_in_its_vocabulary(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", 0)
    arm = Arm()
    chunks = [
        load_policy(path).predict_chunk(observe(arm), "reach the red block") for path in (SHIPPED_BUNDLE, base.path)
    ]
    assert np.array_equal(*chunks)
    assert base.config.raw["vocabulary"][-ROBOTS:] == list(WORDS)
    rng = np.random.default_rng(0)
    episodes = [site_episode(rng, 2) for _ in range(200)]
    counts = [sum(word in episode.instruction for episode in episodes) for word in WORDS]
    assert 70 < sum(counts) < 130 and 40 < counts[2] < 75 and min(counts) > 5
    for episode in episodes:
        named = [colour for colour, word in zip(BLOCK_COLOURS, WORDS, strict=True) if word in episode.instruction]
        assert (named or [episode.colour]) == [episode.colour]


def test_factors_are_averaged_apart_as_in_the_lesson(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [{"a": rng.standard_normal((2, 3)).astype(np.float32)} for _ in range(3)]
    for i, part in enumerate(parts):
        (tmp_path / f"{i}").mkdir()
        safetensors.numpy.save_file(part, tmp_path / f"{i}" / "adapter_model.safetensors")
    average([tmp_path / f"{i}" for i in range(3)], tmp_path / "out")
    found = safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert np.allclose(found["a"], sum(part["a"] for part in parts) / 3)


def test_a_job_that_fails_ends_the_exercise_with_a_code(tmp_path: Path) -> None:
    with refused("SIMULATION_FAILED"), Workers(JOBS, 1, lambda done: None) as workers:
        workers.do([{"job": "judge", "policy": str(tmp_path / "nothing"), "trials": 1, "seed": 0, "number": 0}])
