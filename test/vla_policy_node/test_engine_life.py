"""Whatever is under way: closing ends it soon, nothing is left behind, and no storm of requests leaves the robot alone."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from support.engine_rig import EngineRig
from support.refusals import refused
from support.scripted import TEST_FOLDER, scripted_bundle

from vla_policy_node.generations.recovery import EXPECTED_ERRORS
from vla_policy_node.generations.swapping import SwapRequest

CLOSE_S = 30.0  # far below the timeouts of the loads and swaps here; a slow machine needs some of it


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[str]]:
    """Run a call on a thread of its own; the list gets the code that it raised."""
    codes: list[str] = []

    def work() -> None:
        try:
            call()
        except EXPECTED_ERRORS as e:
            codes.append(e.code)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, codes


def closes_soon(rig: EngineRig) -> None:
    begun = time.monotonic()
    rig.engine.close()
    assert time.monotonic() - begun < CLOSE_S


def test_closing_ends_a_load_a_swap_and_a_recovery_under_way(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", "1.0.0")
    digest = scripted_bundle(tmp_path / "b", "1.1.0").digest
    scripted_bundle(tmp_path / "hangs", "1.2.0", load_sleep_s=3600.0)

    with EngineRig(tmp_path, model_path=str(tmp_path / "hangs")) as rig:  # the very first load
        rig.wait_for(lambda: rig.engine.generations._preparing.locked(), "the load")
        closes_soon(rig)

    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:  # a preparation and a swap
        rig.wait_running()
        rig.engine.prepare(str(tmp_path / "b"), "", lambda *_: None, bool)
        waiting: list[tuple[threading.Thread, list[str]]] = []
        request = SwapRequest(digest=digest, at="EPISODE", timeout_s=3600.0)
        rig.wait_asked(lambda: waiting.append(in_thread(lambda: rig.engine.swap(request))))
        closes_soon(rig)
        ((swap, swap_codes),) = waiting
        swap.join(CLOSE_S)
        assert swap_codes == ["CLOSED"]
        for call in (lambda: rig.engine.swap(SwapRequest(digest=digest)), lambda: rig.engine.enable(True)):
            _, codes = in_thread(call)
            _.join(CLOSE_S)
            assert codes
        assert rig.snapshot.control is None  # and asking does no harm

    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:  # a swap that loads
        rig.wait_running()
        swap, swap_codes = in_thread(lambda: rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / "hangs"))))
        rig.wait_for(lambda: rig.engine.generations._preparing.locked(), "the load")
        closes_soon(rig)
        swap.join(CLOSE_S)
        assert swap_codes and swap_codes[0] in ("CANCELLED", "CLOSED")

    flag = tmp_path / "a" / "config.json"
    with EngineRig(tmp_path, model_path=str(tmp_path / "a")) as rig:  # a recovery
        rig.wait_running()
        loading, _ = in_thread(lambda: rig.engine.prepare(str(tmp_path / "hangs"), "", lambda *_: None, bool))
        rig.wait_for(lambda: rig.engine.generations._preparing.locked(), "a load that the recovery has to wait for")
        os.kill(rig.snapshot.active.generation.pid, signal.SIGKILL)  # type: ignore[union-attr]
        rig.wait_for(lambda: rig.snapshot.active is None, "the loss")
        closes_soon(rig)
        loading.join(CLOSE_S)
    assert flag.exists()


def open_descriptors() -> dict[str, int]:
    """Count this process's descriptors by what they are."""
    found: dict[str, int] = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink()).split(":[")[0].split(" (")[0]
        except OSError:
            continue
        found[target] = found.get(target, 0) + 1
    return found


def settled_descriptors() -> dict[str, int]:
    """Count them when nothing is opened or closed any more: a file that is just being read is no leak."""
    gc.collect()  # what earlier tests left open closes now, not in between
    counts = [open_descriptors()]
    end_s = time.monotonic() + 40.0
    while len(counts) < 4 or any(count != counts[-1] for count in counts[-4:]):
        assert time.monotonic() < end_s, _changed(counts[-1], counts[-2])
        time.sleep(0.05)
        counts.append(open_descriptors())
    return counts[-1]


def _changed(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    found = {what: now.get(what, 0) - before.get(what, 0) for what in {*now, *before}}
    return {what: number for what, number in found.items() if number}


def _watched(rig: EngineRig) -> object:
    handle = rig.engine._watch._handle
    return handle and rig.engine.generations.residents.by_id(handle.id)


def test_swaps_and_lives_leave_no_descriptor_memory_or_process_behind(tmp_path: Path) -> None:
    versions = ["1.0.0", "1.1.0", "1.2.0"]
    digests = [scripted_bundle(tmp_path / v, v, golden=False).digest for v in versions]
    before = settled_descriptors()
    for rounds in (7, 1):
        with EngineRig(tmp_path, model_path=str(tmp_path / versions[0])) as rig:
            rig.wait_running()
            counts = []
            for i in range(1, rounds + 1):
                rig.engine.swap(SwapRequest(bundle_path=str(tmp_path / versions[i % 3])))
                rig.engine.swap(SwapRequest(digest=digests[(i - 1) % 3], cause="ROLLBACK"))
                rig.engine.swap(SwapRequest(digest=digests[i % 3]))
                if i in (2, 4, 6):
                    rig.wait_running(versions[i % 3])
                    rig.wait_for(lambda: rig.engine._pool._supply.spare_pid is None, "no spare while it is counted")
                    rig.wait_for(lambda: _watched(rig) == rig.snapshot.active, "the new one watched")
                    counts.append(settled_descriptors())
            assert all(count == counts[0] for count in counts), [_changed(count, counts[0]) for count in counts]
            assert len(rig.engine._pool.generations()) == 2
            assert rig.control.starved == 0
    assert settled_descriptors() == before


def test_a_storm_of_requests_never_deadlocks_and_never_leaves_the_robot_without_policy(tmp_path: Path) -> None:
    versions = ["1.0.0", "1.1.0", "1.2.0"]
    digests = [scripted_bundle(tmp_path / v, v, golden=False).digest for v in versions]
    scripted_bundle(tmp_path / "bad", "9.9.9", load_raise=True)
    with EngineRig(tmp_path, model_path=str(tmp_path / versions[0])) as rig:
        rig.wait_running()
        codes: set[str] = set()
        done: dict[str, int] = {}
        stop = threading.Event()
        paths = [str(tmp_path / v) for v in [*versions, "bad", "missing"]]
        boundaries = ["CHUNK", "EPISODE", "REST", "NOW", "SOON"]
        calls: dict[str, Callable[[random.Random], object]] = {
            "swap": lambda r: rig.engine.swap(
                SwapRequest(
                    digest=r.choice(digests),
                    at=r.choice(boundaries),
                    timeout_s=0.1,
                    trial=r.random() < 0.1,
                    trial_lease_s=0.1,
                )
            ),
            "load and swap": lambda r: rig.engine.swap(SwapRequest(bundle_path=r.choice(paths), timeout_s=1.0)),
            "prepare": lambda r: rig.engine.prepare(r.choice(paths), "", lambda *_: None, lambda: r.random() < 0.02),
            "rollback": lambda r: rig.engine.swap(
                SwapRequest(digest=r.choice(digests), cause="ROLLBACK", timeout_s=1.0)
            ),
            "start": lambda r: rig.engine.start_episode("", "", 0.2),
            "end": lambda r: rig.engine.end_episode("", success=True),
            "resume": lambda r: rig.engine.resume(),
            "manager": lambda r: rig.engine.on_manager_status(r.choice(digests), r.choice(["", *digests])),
        }

        def client(seed: int, name: str) -> None:
            rng = random.Random(seed)
            while not stop.is_set():
                try:
                    calls[name](rng)
                    done[name] = done.get(name, 0) + 1
                except EXPECTED_ERRORS as e:
                    codes.add(e.code)
                time.sleep(rng.random() * (0.02 if "load" in name else 0.2))

        threads = [
            threading.Thread(target=client, args=(i, name)) for i, name in enumerate([*calls, "swap", "prepare"])
        ]
        for thread in threads:
            thread.start()
        begun, seen = time.monotonic(), set()
        while time.monotonic() < begun + 3.0 or len(seen) < 4 or done.keys() != calls.keys():
            assert time.monotonic() < begun + 60.0, (done, codes, seen)  # until enough has happened
            snapshot = rig.snapshot
            assert snapshot.active is not None and snapshot.active.generation.alive
            assert not any(r is snapshot.active for r in (snapshot.standby, snapshot.prepared))
            seen.add(snapshot.active.id)
            time.sleep(0.005)
        stop.set()
        for thread in threads:
            thread.join(30.0)
            assert not thread.is_alive()
        assert "INTERNAL_ERROR" not in codes and all(code.isupper() for code in codes)
        rig.wait_for(lambda: not rig.snapshot.on_trial, "the last lease's end")
        rig.wait_running()
        assert len(rig.engine._pool.generations()) == len(rig.engine.generations.residents.all()) <= 2
        assert rig.snapshot.control.generation == rig.snapshot.active.id  # type: ignore[union-attr]
        values = rig.commands()[1]
        assert np.isfinite(values).all() and np.abs(np.diff(values, axis=0)).max() <= 4.0 / 50 + 1e-6


PARENT = """
import sys, time
from pathlib import Path
from support.engine_rig import EngineRig
folder = Path(sys.argv[1])
with EngineRig(folder, model_path=str(folder / "1.0.0")) as rig:
    rig.wait_running()
    rig.engine.prepare(str(folder / "1.1.0"), "", lambda *_: None, bool)
    print(rig.engine._control.pid, *(g.pid for g in rig.engine._pool.generations()), flush=True)
    time.sleep(3600)
"""


def test_a_killed_node_leaves_no_process_behind(tmp_path: Path) -> None:
    for version in ("1.0.0", "1.1.0"):
        scripted_bundle(tmp_path / version, version, golden=False)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([TEST_FOLDER, str(Path(TEST_FOLDER).parent)])}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, env=environment, text=True
    )
    try:
        assert parent.stdout is not None
        children = [int(word) for word in parent.stdout.readline().split()]
        assert len(children) == 3 and all(Path(f"/proc/{pid}").exists() for pid in children)
    finally:
        parent.kill()
        parent.communicate()
    end = time.monotonic() + 40.0
    left = children
    while left and time.monotonic() < end:
        left = [pid for pid in left if _lives(pid)]
        time.sleep(0.05)
    assert not left


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_control_process_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    before = settled_descriptors()
    rig = EngineRig(tmp_path, instruction="x" * 2000)
    with refused("INSTRUCTION_TOO_LONG"):
        rig.engine.start()
    rig.engine.close()
    assert settled_descriptors() == before


def test_closing_ends_a_start_under_way_before_it_starts_a_worker(tmp_path: Path) -> None:
    before = settled_descriptors()
    rig = EngineRig(tmp_path)
    start, codes = in_thread(rig.engine.start)
    rig.wait_for(lambda: rig.engine._control.alive, "the control process")
    closes_soon(rig)
    start.join(CLOSE_S)
    assert codes == ["CLOSED"] and settled_descriptors() == before
