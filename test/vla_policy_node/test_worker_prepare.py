"""A bundle is proved in a worker of its own before it may act; whatever goes wrong there costs that worker and nothing else."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from support.bundles import flip_last_byte
from support.refusals import refused
from support.scripted import scripted_bundle
from support.waits import TIMEOUT_S, wait_for
from support.worker_robot import STATE, WorkerRobot, gone, thread_levels

from vla_checkpoint import build_manifest, load_manifest, write_manifest
from vla_policy_node.policies.base import FeatureSpec
from vla_policy_node.worker.api import PrepareError
from vla_policy_node.worker.inference import WARM_UP_INFERENCES
from vla_policy_node.worker.loading import version_fits


def flip_weight(bundle: Path) -> None:
    flip_last_byte(bundle / "model.safetensors")


def truncate_weights(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    os.truncate(path, path.stat().st_size - 4)


def change_config(bundle: Path) -> None:
    path = bundle / "config.json"
    path.write_text(path.read_text().replace('"load_sleep_s": 0.0', '"load_sleep_s": 9.0'))


def test_a_prepared_generation_says_what_it_is_and_what_it_cost(tmp_path: Path) -> None:
    manifest = scripted_bundle(tmp_path / "a", "1.2.3", horizon=12, execute=5, sleep_s=0.01, load_sleep_s=0.05)
    states: list[tuple[str, float]] = []
    with WorkerRobot() as robot:
        generation = robot.pool.prepare(
            tmp_path / "a", digest=manifest.digest, on_progress=lambda state, fraction: states.append((state, fraction))
        )
        assert (generation.handle.version, generation.handle.digest) == ("1.2.3", manifest.digest)
        assert (generation.spec.horizon, generation.spec.execute, generation.spec.action_dim) == (12, 5, 2)
        assert generation.spec.observation == {STATE: FeatureSpec((2,), "float32")}
        assert generation.manifest == manifest
        timings = generation.timings
        assert timings.load_s >= 0.05
        assert timings.golden_s >= 0.02  # two golden observations, 10 ms each
        assert timings.warm_up_s >= 0.01  # one inference after them
        assert timings.inference_ms >= 10.0
        assert timings.digest_s > 0
        fractions = [fraction for _, fraction in states]
        assert fractions == sorted(fractions)
        assert states[0] == ("QUEUED", 0.0)
        assert states[-1] == ("READY", 1.0)
        assert {"LOADING", "DIGEST", "GOLDEN", "WARM_UP"} <= {state for state, _ in states}
        assert robot.pool.generations() == [generation]
        robot.assert_works(generation)


def test_a_bundle_without_golden_observations_is_loaded_and_says_so(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", golden=False)
    with WorkerRobot() as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        assert generation.timings.golden_s == 0
        robot.assert_works(generation)


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_of_any_length_and_type_arrive_aligned_and_whole(tmp_path: Path, shards: int) -> None:
    rng = np.random.default_rng(0)
    odd = {
        "odd.bytes": rng.integers(0, 255, 13, dtype=np.uint8),
        "odd.halves": rng.standard_normal((3, 7)).astype(np.float16),
        "odd.empty": np.zeros((0, 4), np.float32),
        "odd.doubles": rng.standard_normal((5,)),
    }
    scripted_bundle(tmp_path / "a", shards=shards, more_tensors=odd, amplitude=0.0, offset=(0.25, -0.5))
    with WorkerRobot() as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        answer = robot.chunk(generation)
        assert np.allclose(answer["actions"], [0.25, -0.5], atol=1e-6)


def test_one_slow_inference_before_it_is_ready_is_not_the_estimate_of_its_latency(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", warm_up_sleep_s=0.5)
    scripted_bundle(tmp_path / "b", warm_up_sleep_s=0.5, golden=False)
    with WorkerRobot(spare=False) as robot:
        for name in "ab":
            timings = robot.pool.prepare(tmp_path / name).timings
            assert timings.warm_up_s >= 0.5 > 2e-3 * timings.inference_ms


# what the bundle does, what the preparation says
FAILURES: list[tuple[dict[str, Any], str]] = [
    ({"load_crash": True}, "WORKER_DIED"),
    ({"load_raise": True}, "LOAD_FAILED"),
    ({"load_no_memory": True}, "OUT_OF_MEMORY"),
    ({"more_tensors": {"unknown": np.zeros(3, np.float32)}, "ignore_more": False}, "POLICY_WEIGHTS_MISMATCH"),
    ({"spec": {"horizon": 15}}, "SPEC_MISMATCH"),
    ({"spec": {"action_dim": 1}}, "SPEC_MISMATCH"),
    ({"spec": {"execute": 3}}, "SPEC_MISMATCH"),
    ({"images": {"observation.images.top": (4, 6)}}, "OBSERVATION_MISMATCH"),
    ({"golden_error": 0.002}, "GOLDEN_MISMATCH"),
    ({"golden_error": float(np.finfo(np.float32).max)}, "GOLDEN_MISMATCH"),
    ({"nan_at_call": -3}, "GOLDEN_MISMATCH"),  # calls before READY: two golden ones, one to warm up
    ({"raise_at_call": -2}, "GOLDEN_MISMATCH"),
    ({"crash_at_call": -2}, "WORKER_DIED"),
    ({"nan_at_call": -1, "golden": False}, "WARM_UP_FAILED"),
    ({"raise_at_call": -2, "golden": False}, "WARM_UP_FAILED"),
    ({"wrong_shape_at_call": -2, "golden": False}, "WARM_UP_FAILED"),
    ({"reset_raises_at": 1, "golden": False}, "WARM_UP_FAILED"),
    ({"reset_raises_at": 2}, "GOLDEN_MISMATCH"),
    ({"exit_at_call": -1}, "WORKER_DIED"),
    ({"policy_type": "no_such_policy"}, "POLICY_TYPE_UNKNOWN"),
    ({"policy_type": "os.path"}, "POLICY_TYPE_UNKNOWN"),
]


def test_each_failure_has_its_code_and_leaves_the_running_generation_alone(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "good")
    with WorkerRobot(spare=False) as robot:
        good = robot.pool.prepare(tmp_path / "good")
        for number, (behaviour, code) in enumerate(FAILURES):
            bundle = tmp_path / f"bad{number}"
            scripted_bundle(bundle, **behaviour)
            with pytest.raises(PrepareError) as caught:
                robot.pool.prepare(bundle)
            assert caught.value.code == code, (behaviour, str(caught.value))
            assert str(caught.value).isprintable()  # one line, whatever a policy or a library says
            assert robot.pool.generations() == [good]
        robot.assert_works(good)
        assert not [event for event in robot.events if event.kind == "LOST"]


def test_an_unknown_policy_type_is_told_with_the_interpreter_and_what_to_set(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", policy_type="act")
    with WorkerRobot(spare=False) as robot, pytest.raises(PrepareError) as caught:
        robot.pool.prepare(tmp_path / "a")
    for text in (sys.executable, "policy_modules (act=MODULE)", "worker_python"):
        assert text in caught.value.message


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("0.4.4", ">=0.4,<0.5", True),
        ("0.5.0", ">=0.4,<0.5", False),
        ("0.10.0", ">=0.9", True),  # numbers, not letters
        ("2.10.0+cu128", "==2.10", True),
        ("0.4", "!=0.4.0", False),
        ("0.4.4", ">0.4.4", False),
        ("0.4.4", "<=0.4.4,>0.4", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, wanted: str, fits: bool) -> None:
    assert version_fits(version, wanted) is fits


def test_a_bundle_that_needs_another_version_is_refused_with_what_is_there(tmp_path: Path) -> None:
    here = importlib.metadata.version("numpy")
    scripted_bundle(tmp_path / "fits", requires={"numpy": ">=1.0"})
    scripted_bundle(tmp_path / "newer", requires={"numpy": f">{here}"})
    scripted_bundle(tmp_path / "absent", requires={"no-such-thing": ">=0.4,<0.5"})
    with WorkerRobot(spare=False) as robot:
        robot.assert_works(robot.pool.prepare(tmp_path / "fits"))
        for name, has in (("newer", here), ("absent", "none")):
            with pytest.raises(PrepareError) as caught:
                robot.pool.prepare(tmp_path / name)
            assert caught.value.code == "REQUIREMENT_UNMET"
            assert sys.executable in caught.value.message and f"has {has}" in caught.value.message


def test_a_worker_reports_its_interpreters_versions(tmp_path: Path) -> None:
    with WorkerRobot() as robot:
        event = robot.wait_for(lambda e: e.kind == "SPARE_READY")
        assert f"python {platform.python_version()}" in event.message
        assert f"torch {importlib.metadata.version('torch')}" in event.message


def test_tied_tensors_arrive_under_each_of_their_names(tmp_path: Path) -> None:
    """As safetensors' save_model leaves them: one is kept, and the file's metadata name the others."""
    scripted_bundle(tmp_path / "a", offset=0.25, phase=0.25, amplitude=0.0, golden=False)
    weights = safetensors.numpy.load_file(tmp_path / "a" / "model.safetensors")
    del weights["offset"]
    safetensors.numpy.save_file(weights, tmp_path / "a" / "model.safetensors", {"offset": "phase", "format": "pt"})
    old = load_manifest(tmp_path / "a")
    write_manifest(
        tmp_path / "a",
        build_manifest(
            tmp_path / "a",
            name=old.name,
            version=old.version,
            policy_type=old.policy_type,
            robot_type=old.robot_type,
            channels=old.action.channels,
            rate_hz=old.action.rate_hz,
        ),
    )
    with WorkerRobot(spare=False) as robot:
        assert np.allclose(robot.chunk(robot.pool.prepare(tmp_path / "a"))["actions"], 0.25)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (flip_weight, "DIGEST_TENSOR"),
        (truncate_weights, "BUNDLE_FILE_SIZE"),
        (change_config, "DIGEST_FILE"),
        (lambda bundle: (bundle / "stats.json").unlink(), "BUNDLE_FILE_MISSING"),
        (lambda bundle: (bundle / "manifest.json").write_text("{"), "MANIFEST_FIELD"),
    ],
)
def test_a_damaged_bundle_is_not_loaded(tmp_path: Path, damage: Callable[[Path], object], code: str) -> None:
    scripted_bundle(tmp_path / "a", load_sleep_s=0.0)
    damage(tmp_path / "a")
    with WorkerRobot(spare=False) as robot, refused(code):
        robot.pool.prepare(tmp_path / "a")


@pytest.mark.parametrize(("damage", "code"), [(flip_weight, "DIGEST_TENSOR"), (truncate_weights, "LOAD_FAILED")])
def test_weights_that_change_after_the_bundle_was_checked_are_noticed(
    tmp_path: Path, damage: Callable[[Path], None], code: str
) -> None:
    scripted_bundle(tmp_path / "a")
    asked = threading.Event()
    calls = 0

    def cancelled() -> bool:
        nonlocal calls
        calls += 1
        if calls >= 4:  # by now the checks are over and the (stopped) worker has its orders
            asked.set()
        return False

    failure: list[PrepareError] = []

    def prepare() -> None:
        try:
            robot.pool.prepare(tmp_path / "a", cancelled=cancelled)
        except PrepareError as e:
            failure.append(e)

    with WorkerRobot() as robot:
        spare = robot.spare_ready()
        os.kill(spare, signal.SIGSTOP)
        thread = threading.Thread(target=prepare)
        thread.start()
        assert asked.wait(TIMEOUT_S)
        damage(tmp_path / "a")
        os.kill(spare, signal.SIGCONT)
        thread.join(TIMEOUT_S)
        assert [e.code for e in failure] == [code]


def test_another_digest_than_the_wanted_one_is_refused(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a")
    with WorkerRobot(spare=False) as robot, refused("DIGEST_BUNDLE"):
        robot.pool.prepare(tmp_path / "a", digest="0" * 64)


@pytest.mark.parametrize("where", ["load", "golden", "warm_up"])
def test_a_cancelled_preparation_ends_although_the_policy_does_not(tmp_path: Path, where: str) -> None:
    behaviour = {
        "load": {"load_sleep_s": 3600.0},
        "golden": {"hang_at_call": -1 - WARM_UP_INFERENCES},  # the first of two
        "warm_up": {"spin_at_call": -1},
    }[where]
    scripted_bundle(tmp_path / "good")
    scripted_bundle(tmp_path / "slow", **behaviour)
    stop = threading.Event()
    with WorkerRobot() as robot:
        good = robot.pool.prepare(tmp_path / "good")
        state = {"load": "DIGEST", "golden": "GOLDEN", "warm_up": "WARM_UP"}[where]
        pid = robot.spare_ready(not_pid=good.pid)
        with refused("CANCELLED"):
            robot.pool.prepare(
                tmp_path / "slow", on_progress=lambda s, _: stop.set() if s == state else None, cancelled=stop.is_set
            )
        assert gone(pid, 0.1)
        robot.assert_works(good)


def test_a_preparation_past_its_time_ends(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "slow", load_sleep_s=3600.0)
    with WorkerRobot(spare=False) as robot, refused("LOAD_TIMEOUT"):
        robot.pool.prepare(tmp_path / "slow", timeout_s=0.5)


def test_a_second_preparation_at_the_same_time_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", load_sleep_s=0.3)
    scripted_bundle(tmp_path / "b")
    refusals: list[str] = []

    def intrude(state: str, fraction: float) -> None:
        if state == "LOADING" and not refusals:
            with pytest.raises(PrepareError) as caught:
                robot.pool.prepare(tmp_path / "b")
            refusals.append(caught.value.code)

    with WorkerRobot(spare=False) as robot:
        generation = robot.pool.prepare(tmp_path / "a", on_progress=intrude)
        assert refusals == ["PREPARE_IN_PROGRESS"]
        robot.assert_works(generation)


def test_a_third_generation_needs_a_place(tmp_path: Path) -> None:
    for name in "abc":
        scripted_bundle(tmp_path / name)
    with WorkerRobot(spare=False) as robot:
        a, b = (robot.pool.prepare(tmp_path / name) for name in "ab")
        with refused("NO_FREE_SLOT"):
            robot.pool.prepare(tmp_path / "c")
        robot.pool.release(a)
        robot.pool.release(a)
        assert gone(a.pid, 0.1)
        c = robot.pool.prepare(tmp_path / "c")
        robot.assert_works(b)
        robot.assert_works(c)
        assert robot.pool.generations() == [b, c]


def test_too_little_memory_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a")
    with WorkerRobot(memory_reserve_bytes=1 << 60) as robot:
        spare = robot.spare_ready()
        with refused("OUT_OF_MEMORY") as caught:
            robot.pool.prepare(tmp_path / "a")
        assert "available" in str(caught.value)
        assert robot.spare_pid == spare


def settled_descriptors() -> int:
    """Count this process's descriptors when none is opened or closed any more: a file that is just being read is no leak."""
    gc.collect()  # what earlier tests left open closes now, not in between
    counts = [0]

    def same() -> bool:
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
        return len({*counts[-4:]}) == 1

    wait_for(same, "descriptors that stay as they are")
    return counts[-1]


def weight_mappings(pid: int) -> dict[int, int]:
    """Return inode → bytes of the weights' arenas that a process maps."""
    found = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "memfd:vla_ota_weights" in line:
            span, _, _, _, inode = line.split()[:5]
            begin, end = (int(number, 16) for number in span.split("-"))
            found[int(inode)] = end - begin
    return found


def test_ten_updates_reuse_two_arenas_and_leak_nothing(tmp_path: Path) -> None:
    weights = {"ballast": np.ones(300_000, np.float32)}
    for name in "ab":
        scripted_bundle(tmp_path / name, more_tensors=weights)
    seen: dict[int, int] = {}
    with WorkerRobot(spare=False) as robot:
        active = robot.pool.prepare(tmp_path / "a")
        descriptors = set()
        for number in range(10):
            seen |= weight_mappings(active.pid)
            new = robot.pool.prepare(tmp_path / "ab"[number % 2])
            robot.pool.release(active)
            active = new
            descriptors.add(settled_descriptors())
        seen |= weight_mappings(active.pid)
        robot.assert_works(active)
    assert len(seen) == 2
    assert len(set(seen.values())) == 1
    assert len(descriptors) == 1


def test_loading_is_niced_and_inference_is_not(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", load_sleep_s=2.0)
    levels: dict[str, int] = {}

    def look(state: str, fraction: float) -> None:
        if state == "LOADING" and fraction >= 0.6:  # the policy's own load is running
            levels.update(thread_levels(spare))

    with WorkerRobot(nice=7) as robot:
        spare = robot.spare_ready()
        generation = robot.pool.prepare(tmp_path / "a", on_progress=look)
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert levels[str(spare)] == own
        assert min(19, own + 7) in levels.values()
        assert set(thread_levels(generation.pid).values()) == {own}


def test_closing_ends_a_preparation(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "slow", load_sleep_s=3600.0)
    codes: list[str] = []
    loading = threading.Event()

    def prepare() -> None:
        try:
            robot.pool.prepare(tmp_path / "slow", on_progress=lambda s, f: loading.set() if f > 0 else None)
        except PrepareError as e:
            codes.append(e.code)

    robot = WorkerRobot(spare=False)
    robot.pool.start()
    thread = threading.Thread(target=prepare)
    thread.start()
    assert loading.wait(TIMEOUT_S)
    robot.pool.close()
    thread.join(TIMEOUT_S)
    assert codes in (["CLOSED"], ["WORKER_DIED"])
    with refused("CLOSED"):
        robot.pool.prepare(tmp_path / "slow")


def test_weights_that_a_policy_has_let_go_make_room_for_the_next_ones(tmp_path: Path) -> None:
    """What acts never worked with them again: that is as true while others lie in their place."""
    copying = {"amplitude": 0.0, "copies_weights": True, "lets_go": True}
    scripted_bundle(tmp_path / "a", "1.0.0", offset=0.1, **copying)
    scripted_bundle(tmp_path / "b", "1.1.0", offset=0.2, **copying)
    with WorkerRobot(spare=False) as robot:
        for _ in range(2):
            first = robot.pool.prepare(tmp_path / "a")
            once = robot.weights_bytes
            assert robot.pool.holds_two()
            second = robot.pool.prepare(tmp_path / "b")
            assert robot.weights_bytes == once
            for generation, acts in ((first, 0.1), (second, 0.2)):
                assert np.allclose(robot.chunk(generation)["actions"], acts)
            with refused("NO_FREE_SLOT"):
                robot.pool.prepare(tmp_path / "a")
            for generation in (first, second):
                robot.pool.release(generation)


@pytest.mark.parametrize("behaviour", [{"copies_weights": True}, {"lets_go": True}], ids=["silent", "views"])
def test_weights_that_a_policy_may_still_use_stay_its_own(tmp_path: Path, behaviour: dict[str, Any]) -> None:
    """One says nothing, and may hold addresses; the other one has views, whatever it says."""
    scripted_bundle(tmp_path / "a", "1.0.0", amplitude=0.0, offset=0.1, **behaviour)
    scripted_bundle(tmp_path / "b", "1.1.0", amplitude=0.0, offset=0.2, **behaviour)
    with WorkerRobot(spare=False) as robot:
        first = robot.pool.prepare(tmp_path / "a")
        once = robot.weights_bytes
        robot.pool.prepare(tmp_path / "b")
        assert robot.weights_bytes == 2 * once
        assert np.allclose(robot.chunk(first)["actions"], 0.1)
