# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning learns what was shown, by weight; it goes on where it was stopped; an adapter runs on a robot as it was trained."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from support.demonstrations import HORIZON, demonstrations
from support.episodes import arrays, meta
from support.refusals import refused
from support.tiny_vla_bundles import CAMERA, STATE
from support.worker_robot import WorkerRobot

from vla_checkpoint import Bundle, open_bundle, verify_bundle
from vla_fleet.cli.main import main
from vla_learning.datasets.build import build_dataset
from vla_learning.datasets.reading import open_dataset
from vla_learning.datasets.selection import BuildSettings, Source
from vla_learning.episodes.summary import summarize
from vla_learning.episodes.writing import write_episode
from vla_learning.running import load_policy
from vla_learning.training.examples import Examples
from vla_learning.training.recordings import examples_of
from vla_learning.training.sealing import add_golden, seal
from vla_learning.training.tiny_vla import Settings, fine_tune
from vla_policy_node.policies.base import FeatureSpec, Policy

pytestmark = pytest.mark.long

TOP = Path(__file__).resolve().parents[2]
QUICK = Settings(steps=100, batch=32, learning_rate=3e-3, checkpoint_every=20)
FEATURES = {STATE: FeatureSpec((2,), "float32"), CAMERA: FeatureSpec((32, 32, 3), "uint8")}


def error_of(policy: Policy, examples: Examples) -> float:
    """Mean error of chunks against what was recorded."""
    index = np.arange(0, len(examples), 97)
    targets, real = examples.chunks(index, HORIZON)
    pictures = examples.pictures(index)
    errors = []
    for i, n in enumerate(index):
        observation = {STATE: examples.states[examples.at[n]], CAMERA: pictures[i]}
        chunk = policy.predict_chunk(observation, examples.instructions[n])
        errors.append(np.abs(chunk - targets[i])[real[i]].mean())
    return float(np.mean(errors))


def sealed(base: Path, out: Path) -> Bundle:
    """The candidate with golden observations."""
    bundle, examples = open_bundle(base), demonstrations(2)
    kind = "adapter" if (out / "adapter_config.json").exists() else "full"
    candidate = seal(out, bundle, kind, {})
    observations = {STATE: examples.states[:2], CAMERA: examples.pictures(np.arange(2))}
    add_golden(out, candidate, bundle, observations, ["red block", "block"])
    return seal(out, bundle, kind, {})


@pytest.mark.parametrize(("method", "version"), [("full", "1.1.0"), ("lora", "1.0.1")])
def test_it_learns_demonstrations_that_it_did_not_see_and_bumps_the_version(
    tiny_base: Path, tmp_path: Path, method: str, version: str
) -> None:
    fine_tune(tiny_base, demonstrations(), tmp_path / "out", tmp_path / "work", replace(QUICK, method=method), seed=1)
    base, candidate = open_bundle(tiny_base), sealed(tiny_base, tmp_path / "out")
    assert verify_bundle(candidate.path).manifest.version == version
    others = demonstrations(seed=9)
    before, after = (error_of(load_policy(*bundles), others) for bundles in ((base,), (candidate, base)))
    assert after < 0.5 * before
    assert (tmp_path / "work" / "loss.png").stat().st_size > 1000
    assert list((tmp_path / "work").glob("events.out.tfevents*"))


_KILLED = """
import signal
import sys
from dataclasses import replace
from pathlib import Path
from support.demonstrations import demonstrations
from vla_learning.training.tiny_vla import Settings, fine_tune

base, out, work, method = sys.argv[1:]
examples, calls = demonstrations(), 0

def pictures(index):
    global calls
    calls += 1
    if calls == 47:
        print("in step 47", flush=True)
        signal.pause()
    return examples.pictures(index)

settings = Settings(method, steps=100, batch=32, learning_rate=3e-3, checkpoint_every=20)
fine_tune(Path(base), replace(examples, pictures=pictures), Path(out), Path(work), settings, seed=3)
"""


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_whose_process_was_killed_ends_with_the_same_weights(
    tiny_base: Path, tmp_path: Path, method: str
) -> None:
    settings, examples, calls = replace(QUICK, method=method), demonstrations(), 0

    def pictures(index: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return examples.pictures(index)

    def run(name: str) -> dict[str, np.ndarray]:
        out = tmp_path / name
        given = replace(examples, pictures=pictures)
        fine_tune(tiny_base, given, out, tmp_path / f"{name}-work", settings, seed=3)
        return safetensors.numpy.load_file(next(out.glob("*model.safetensors")))

    whole, calls = run("whole"), 0
    arguments = [tiny_base, tmp_path / "killed", tmp_path / "killed-work", method]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [TOP, TOP / "test"]))}
    command = [sys.executable, "-c", _KILLED, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == "in step 47\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "killed").exists()
    again = run("killed")
    assert calls == 60, "from step 40 on, not from the beginning"
    assert whole.keys() == again.keys()
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


def test_what_has_no_weight_is_not_learned(tiny_base: Path, tmp_path: Path) -> None:
    """Half of the demonstrations go the wrong way, with weight 0."""
    good, bad = demonstrations(), demonstrations(seed=5)
    wrong = np.where(np.arange(len(good)) % 2 == 0, 0.0, 1.0)
    mixed = replace(
        good,
        states=np.concatenate([good.states, bad.states]),
        actions=np.concatenate([good.actions, 2 * bad.states - bad.actions]),
        at=np.concatenate([good.at, bad.at + len(good)]),
        until=np.concatenate([good.until, bad.until + len(good)]),
        weights=np.concatenate([wrong, np.zeros(len(bad))]),
        instructions=[*good.instructions, *bad.instructions],
        pictures=lambda index: good.pictures(index % len(good)),
    )
    fine_tune(tiny_base, mixed, tmp_path / "out", tmp_path / "work", QUICK, seed=1)
    base = open_bundle(tiny_base)
    assert error_of(load_policy(sealed(tiny_base, tmp_path / "out")), good) < 0.5 * error_of(load_policy(base), good)


def test_nothing_to_learn_and_the_checkpoint_of_another_run_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    examples = demonstrations(2)
    nothing = replace(examples, weights=np.zeros(len(examples)))
    with refused("TRAINING_NO_EXAMPLES"):
        fine_tune(tiny_base, nothing, tmp_path / "out", tmp_path / "work", QUICK, seed=1)
    settings = replace(QUICK, steps=2)
    fine_tune(tiny_base, examples, tmp_path / "out", tmp_path / "work", settings, seed=1)
    with refused("TRAINING_CHECKPOINT"):
        fine_tune(tiny_base, examples, tmp_path / "out", tmp_path / "work", settings, seed=2)
    checkpoint = tmp_path / "work" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with refused("TRAINING_CHECKPOINT"):
        fine_tune(tiny_base, examples, tmp_path / "out", tmp_path / "work", settings, seed=1)


def test_a_diverging_run_ends_with_an_error_and_no_candidate(tiny_base: Path, tmp_path: Path) -> None:
    examples = demonstrations(2)
    wild = replace(examples, actions=np.full_like(examples.actions, np.nan))
    with refused("TRAINING_DIVERGED"):
        fine_tune(tiny_base, wild, tmp_path / "out", tmp_path / "work", QUICK, seed=1)
    assert not (tmp_path / "out").exists()


def test_a_robots_worker_runs_an_adapter_and_its_merge_as_they_were_trained(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden chunks are of the adapter merged here; the worker merges it with its own code, and replays them."""
    out = tiny_base.parent / "1.0.1"
    fine_tune(tiny_base, demonstrations(8), out, tmp_path / "work", replace(QUICK, method="lora", steps=20), seed=1)
    candidate = sealed(tiny_base, out)
    golden = candidate.golden()
    assert golden is not None
    own = load_policy(open_bundle(tiny_base))
    differs = own.predict_chunk({k: v[0] for k, v in golden.observations.items()}, golden.instructions[0])
    assert np.abs(differs - golden.action[0]).max() > 10 * golden.tolerance.max()
    merged = out.with_name("1.0.2")
    command = ["adapters", "merge", str(out), "--base", str(tiny_base), "--out", str(merged)]
    monkeypatch.setattr("sys.argv", ["vla-fleet", *command])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code and verify_bundle(merged).has_golden
    with WorkerRobot(FEATURES, imports=(), spare=False) as robot:
        for folder in (out, merged):
            generation = robot.pool.prepare(folder)
            assert generation.timings.golden_difference < 1e-4
            robot.assert_works(generation)


def test_behind_an_episodes_end_the_last_action_counts_only_where_the_robot_came_to_rest(tmp_path: Path) -> None:
    """Three episodes: a success, one corrected up to its end, and one in which the operator gave back in the middle."""
    sources = []
    for number, corrected in enumerate((0, 4, 4)):
        path = tmp_path / f"{number}.mcap"
        made, taken = (
            arrays(number, 12),
            np.arange(12) >= 8 if number == 1 else (np.arange(12) // 4 == 1) & (number == 2),
        )
        write_episode(path, meta(number), **made, intervention=taken)
        sources.append(Source(summarize(path), path, number, new=True))
        assert sources[-1].episode.corrections == corrected
    build_dataset(sources, tmp_path / "set", BuildSettings())
    dataset = open_dataset(tmp_path / "set")
    last = [examples_of(dataset, [n], STATE, CAMERA, rest=rest) for n in range(3) for rest in (True, False)]
    assert [len(e) for e in last] == [12, 12, 4, 4, 4, 4]
    counted = [int(e.chunks(np.array([len(e) - 1]), 5)[1].sum()) for e in last]
    assert counted == [5, 1, 5, 1, 1, 1]
    held, _ = last[2].chunks(np.array([3]), 5)
    np.testing.assert_array_equal(held[0], np.repeat(dataset.columns("action")["action"][[23]], 5, axis=0))
    total = dataset.columns("sampling_weight")["sampling_weight"]
    assert last[4].weights.sum() == pytest.approx(total[24:36].sum(), rel=1e-5), "the episode's whole weight"
