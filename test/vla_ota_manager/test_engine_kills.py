# SPDX-License-Identifier: Apache-2.0
"""A manager killed at any point of an update leaves a committed bundle under ``current``; the next one completes the update.

A recording run writes down every crash point that an update from 1.0.0 to 1.1.0 passes; then engines are killed by
SIGKILL at each of them.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.engine_runs import EngineRuns, Job
from support.ota import Robot, shared_weights
from support.simulated_policy import SimulatedPolicy

from vla_checkpoint import Manifest, load_manifest, sha256_file, verify_bundle
from vla_ota_manager.states import PIPELINE, UpdateState
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.state import State
from vla_ota_manager.store.store import Store
from vla_sim.checkpoint_server import Behaviour, CheckpointServer

PARALLEL = 4  # the runs mostly wait
RATE_BYTES_S = 1_000_000.0  # slow enough that little is in flight when a download is killed


@pytest.fixture(scope="module")
def several() -> Iterator[list[EngineRuns]]:
    """What forks the engines of the whole file: each costs a second of imports."""
    with ExitStack() as stack:
        yield [stack.enter_context(EngineRuns()) for _ in range(PARALLEL)]


@pytest.fixture(scope="module")
def runs(several: list[EngineRuns]) -> EngineRuns:
    return several[0]


class Fleet:
    """Fresh robots, all with 1.0.0 committed, all offered 1.1.0, each under a path of its own on the same server."""

    def __init__(self, folder: Path, server: CheckpointServer) -> None:
        self.folder, self.server = folder, server
        self.template = Robot(folder / "template", server)
        self.template.folder.mkdir()
        self.template.settings = {"min_trial_chunks": 2}
        self.template.adopt("1.0.0")
        self.new = self.template.publish("1.1.0", tensors=shared_weights(3, 20_000))
        self.numbers = itertools.count()

    def robot(self) -> tuple[Path, Job]:
        """Return a robot's folder and the job that updates it."""
        name = f"robot-{next(self.numbers)}"
        folder = self.folder / name
        no_locks = shutil.ignore_patterns(".lock")
        shutil.copytree(
            self.template.store_dir, folder / "store", symlinks=True, copy_function=os.link, ignore=no_locks
        )
        with SimulatedPolicy.boot(folder / "policy.json", folder / "store/current").edit() as document:
            document["shows_shadow"] = True
        (self.server.root / name).symlink_to(".")
        config = {**self.template.config_arguments(), "store_dir": str(folder / "store"), "max_trial_attempts": 5}
        url = self.server.url(f"{name}/pick_place/1.1.0/manifest.json")
        update = self.template.update("1.1.0", manifest_url=url).to_json()
        return folder, Job(config, str(folder / "policy.json"), update, wait_for=update["update_id"])

    def asked_from(self, folder: Path, sha256: str) -> list[int]:
        """Return the offsets from which a robot has asked for a blob so far."""
        path = f"/{folder.name}/blobs/sha256/{sha256}"
        requests = list(self.server.requests)
        return [int(headers.get("range", "bytes=0-")[6:-1]) for asked, headers in requests if asked == path]


def killed(runs: EngineRuns, job: Job, point: str, nth: int) -> bool:
    code = runs.run(Job(**{**job.__dict__, "crash_at": f"{point}:{nth}"}))
    assert code in (0, -signal.SIGKILL), f"{point}:{nth} ended with {code}"
    return code < 0


def size_on_disk(store: Path, sha256: str) -> int:
    """Return how many bytes of a blob a killed manager has left, under whatever name."""
    places = [store / "partial" / sha256, store / "blobs/sha256" / sha256]
    return max((place.stat().st_size for place in places if place.exists()), default=0)


def current_version(folder: Path) -> str:
    """``current`` must name a complete, verified bundle; return its version."""
    target = (folder / "store/current").resolve(strict=True)
    manifest = load_manifest(target)
    verify_bundle(target, expected_digest=manifest.digest)
    return manifest.version


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("kills")
    (folder / "registry").mkdir()
    with CheckpointServer(folder / "registry") as server:
        yield Fleet(folder, server)


def in_parallel(
    several: list[EngineRuns], work: Callable[[EngineRuns, str, int], bool], points: list[tuple[str, int]]
) -> list[bool]:
    """Kill at many points, a few at a time: the runs mostly wait. Return for each whether the point was reached.

    A run may pass a point less often than the recorded one did (a state is written once less, two chunks arrive as one): then it
    is killed a little earlier.
    """

    def reached(runs: EngineRuns, name: str, nth: int) -> bool:
        return any(work(runs, name, earlier) for earlier in range(nth, max(0, nth - 3), -1))

    def share(i: int) -> list[bool]:
        return [reached(several[i], name, nth) for name, nth in points[i :: len(several)]]

    with ThreadPoolExecutor(len(several)) as pool:
        return [hit for hits in pool.map(share, range(len(several))) for hit in hits]


def passed_after(log: Path, mark: str) -> list[tuple[str, int]]:
    """Return each crash point that a recorded run passed from ``mark`` on, with how often it had been passed then."""
    passed = log.read_text().split()
    before = Counter(passed[: passed.index(mark)])
    return sorted({(name, before[name] + 1) for name in passed[passed.index(mark) :]})


def kill_and_go_on(fleet: Fleet, runs: EngineRuns, name: str, nth: int) -> bool:
    """Kill an update at one crash point, then let another manager complete it; false if the point was not reached."""
    where = f"after a kill at {name}:{nth}"
    folder, job = fleet.robot()
    was_killed = killed(runs, job, name, nth)
    assert current_version(folder) in ("1.0.0", "1.1.0"), where
    blobs = [entry.sha256 for entry in fleet.new.files]
    before = {sha256: fleet.asked_from(folder, sha256) for sha256 in blobs}
    on_disk = {sha256: size_on_disk(folder / "store", sha256) for sha256 in blobs}
    assert runs.run(job) == 0, where
    assert current_version(folder) == "1.1.0", where
    assert SimulatedPolicy(folder / "policy.json").look()["active"]["version"] == "1.1.0", where
    for entry in fleet.new.files:
        asked = fleet.asked_from(folder, entry.sha256)[len(before[entry.sha256]) :]
        kept = on_disk[entry.sha256]
        assert asked == ([] if kept == entry.size else [kept]), f"{entry.path} of {entry.size} bytes {where}"
    shutil.rmtree(folder)
    return was_killed


@pytest.mark.timeout(300)
def test_killed_at_every_crash_point_the_update_completes_and_no_blob_is_fetched_twice(
    fleet: Fleet, several: list[EngineRuns], runs: EngineRuns
) -> None:
    folder, job = fleet.robot()
    fleet.server.behave("/blobs/", Behaviour(rate_bytes_s=RATE_BYTES_S))
    log = folder / "points"
    assert runs.run(Job(**{**job.__dict__, "crash_log": str(log)})) == 0
    passed = Counter(log.read_text().split())
    assert {"fetch.chunk", "install.before_rename", "port.after_swap", "current.before_rename"} <= set(passed)
    way = (*PIPELINE, UpdateState.SWAPPING, UpdateState.TRIAL, UpdateState.COMMITTED)
    assert {f"entered.{state.name}" for state in way} <= set(passed)
    points = [(name, nth) for name, count in passed.items() for nth in sorted({1, count})]
    reached = in_parallel(several, lambda own, name, nth: kill_and_go_on(fleet, own, name, nth), points)
    fleet.server.be_good()
    assert sum(reached) >= 0.9 * len(points)  # how often the last state is written in a run is not fixed


def test_killed_at_every_crash_point_of_a_rollback_the_bad_version_ends_blocked(
    fleet: Fleet, several: list[EngineRuns], runs: EngineRuns
) -> None:
    folder, job = fleet.robot()
    job.bad_version = "1.1.0"
    log = folder / "points"
    assert runs.run(Job(**{**job.__dict__, "crash_log": str(log)})) == 0
    points = passed_after(log, "entered.TRIAL")
    assert {"entered.ROLLING_BACK", "port.before_swap", "port.after_swap"} <= {name for name, _ in points}

    def work(own: EngineRuns, name: str, nth: int) -> bool:
        where = f"after a kill at {name}:{nth}"
        folder, job = fleet.robot()
        job.bad_version = "1.1.0"
        was_killed = killed(own, job, name, nth)
        assert current_version(folder) == "1.0.0", where
        assert own.run(job) == 0, where
        assert current_version(folder) == "1.0.0", where
        assert SimulatedPolicy(folder / "policy.json").look()["active"]["version"] == "1.0.0", where
        state = State.from_bytes((folder / "store/state.json").read_bytes())
        assert [block.ref.version for block in state.blocked.values()] == ["1.1.0"], where
        assert state.state is UpdateState.ROLLED_BACK, where
        return was_killed

    in_parallel(several, work, points)


class Damaged:
    """A fleet's robots whose committed 1.0.0 is damaged when it is offered again."""

    LOST, INTACT = "model.safetensors", "stats.json"

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.manifest = fleet, fleet.template.manifests["1.0.0"]

    def robot(self) -> tuple[Path, Job]:
        """Return a robot's folder and the job that repairs it. Names are changed, not files: the robots share those."""
        folder, job = self.fleet.robot()
        version = folder / "store/models/pick_place/1.0.0"
        lost = self.manifest.file(self.LOST)
        assert lost is not None
        (version / self.LOST).unlink()
        (folder / "store/blobs/sha256" / lost.sha256).unlink()
        (version / "config.json").unlink()
        (version / "config.json").write_bytes(b"{}")
        (version / "notes").mkdir()
        (version / "notes/stray.txt").write_text("x")
        url = self.fleet.server.url(f"{folder.name}/pick_place/1.0.0/manifest.json")
        job.offer = self.fleet.template.update("1.0.0", manifest_url=url).to_json()
        job.wait_for = job.offer["update_id"]
        return folder, job


@pytest.mark.timeout(300)
def test_killed_at_every_crash_point_of_a_repair_what_was_intact_stays_and_the_rest_is_made_whole(
    fleet: Fleet, several: list[EngineRuns], runs: EngineRuns
) -> None:
    damaged = Damaged(fleet)
    folder, job = damaged.robot()
    log = folder / "points"
    assert runs.run(Job(**{**job.__dict__, "crash_log": str(log)})) == 0
    assert current_version(folder) == "1.0.0"
    passed = Counter(log.read_text().split())
    assert {"blob.rescue.before_link", "mend.stray.half_removed", "mend.file.before_rename"} <= set(passed)
    points = [(name, nth) for name, count in passed.items() for nth in sorted({1, count})]
    lost, intact = (damaged.manifest.file(name) for name in (damaged.LOST, damaged.INTACT))
    assert lost is not None and intact is not None

    def work(own: EngineRuns, name: str, nth: int) -> bool:
        where = f"after a kill at {name}:{nth}"
        folder, job = damaged.robot()
        was_killed = killed(own, job, name, nth)
        current = (folder / "store/current").resolve(strict=True)
        assert current.name == "1.0.0" and load_manifest(current).digest == damaged.manifest.digest, where
        assert sha256_file(current / damaged.INTACT) == intact.sha256, where
        before, kept = fleet.asked_from(folder, lost.sha256), size_on_disk(folder / "store", lost.sha256)
        assert own.run(job) == 0, where
        assert current_version(folder) == "1.0.0", where
        asked = fleet.asked_from(folder, lost.sha256)[len(before) :]
        assert asked == ([] if kept == lost.size else [kept]), where
        for entry in damaged.manifest.files:
            assert entry is lost or fleet.asked_from(folder, entry.sha256) == [], f"{entry.path} {where}"
        state = State.from_bytes((folder / "store/state.json").read_bytes())
        assert state.seen["u-1.0.0"].state is UpdateState.COMMITTED, where
        shutil.rmtree(folder)
        return was_killed

    assert sum(in_parallel(several, work, points)) >= 0.9 * len(points)


class Urgent:
    """A fleet's robots in the trial of 1.1.0, which proves nothing, when 1.2.0 is offered as urgent; intact or corrupt."""

    def __init__(self, fleet: Fleet, new: Manifest, *, corrupt: bool) -> None:
        self.fleet, self.new, self.corrupt = fleet, new, corrupt

    def robot(self) -> tuple[Path, Job]:
        """Return a robot's folder and the job that ends with the urgent update."""
        folder, job = self.fleet.robot()
        url = self.fleet.server.url(f"{folder.name}/pick_place/1.2.0/manifest.json")
        job.urgent = self.fleet.template.update("1.2.0", manifest_url=url).to_json() | {"urgent": True}
        job.wait_for, job.silent_version = job.urgent["update_id"], "1.1.0"
        job.config |= {"backoff_s": 0.01, "backoff_max_s": 0.02}
        if self.corrupt:
            weights = self.new.file("model.safetensors")
            assert weights is not None
            body = bytearray((self.fleet.server.root / "blobs/sha256" / weights.sha256).read_bytes())
            body[-1] ^= 1
            path = f"/{folder.name}/blobs/sha256/{weights.sha256}"
            self.fleet.server.behave(path, Behaviour(body=bytes(body)))
        return folder, job

    def points(self, runs: EngineRuns) -> list[tuple[str, int]]:
        """Return every crash point from the trial of 1.1.0 on."""
        folder, job = self.robot()
        log = folder / "points"
        assert runs.run(Job(**{**job.__dict__, "crash_log": str(log)})) == 0
        return passed_after(log, "entered.TRIAL")

    def state(self, folder: Path) -> State:
        """Return what a robot's manager has saved."""
        return State.from_bytes((folder / "store/state.json").read_bytes())


@pytest.fixture(scope="module")
def urgent_manifest(fleet: Fleet) -> Manifest:
    return fleet.template.publish("1.2.0", tensors=shared_weights(5, 20_000))


@pytest.mark.timeout(300)
def test_killed_at_every_crash_point_an_urgent_update_takes_the_trials_place_once_it_is_complete(
    fleet: Fleet, several: list[EngineRuns], runs: EngineRuns, urgent_manifest: Manifest
) -> None:
    urgent = Urgent(fleet, urgent_manifest, corrupt=False)
    points = urgent.points(runs)
    names = [name for name, _ in points]
    assert {"fetch.chunk", "install.before_rename", "entered.ROLLING_BACK", "current.before_rename"} <= set(names)

    def work(own: EngineRuns, name: str, nth: int) -> bool:
        where = f"after a kill at {name}:{nth}"
        folder, job = urgent.robot()
        was_killed = killed(own, job, name, nth)
        state = urgent.state(folder)
        if (
            state.trial is None and state.update is None and was_killed
        ):  # the trial was given up: what replaces it is there
            assert (folder / "store/models/pick_place/1.2.0/manifest.json").exists(), where
        assert current_version(folder) in ("1.0.0", "1.2.0"), where
        blobs = {entry.sha256: entry.size for entry in urgent.new.files}
        before = {sha256: fleet.asked_from(folder, sha256) for sha256 in blobs}
        on_disk = {sha256: size_on_disk(folder / "store", sha256) for sha256 in blobs}
        assert own.run(job) == 0, where
        assert current_version(folder) == "1.2.0", where
        assert SimulatedPolicy(folder / "policy.json").look()["active"]["version"] == "1.2.0", where
        for sha256, size in blobs.items():
            asked = fleet.asked_from(folder, sha256)[len(before[sha256]) :]
            assert asked == ([] if on_disk[sha256] == size else [on_disk[sha256]]), where
        state = urgent.state(folder)
        replaced = state.seen["u-1.1.0"]
        assert (replaced.state, replaced.code) == (UpdateState.ROLLED_BACK, "SUPERSEDED"), where
        assert state.blocked == {} and state.trial is None, where
        shutil.rmtree(folder)
        return was_killed

    assert sum(in_parallel(several, work, points)) >= 0.9 * len(points)


@pytest.mark.timeout(300)
def test_killed_at_every_crash_point_a_broken_urgent_update_leaves_the_trial_as_it_was(
    fleet: Fleet, several: list[EngineRuns], runs: EngineRuns, urgent_manifest: Manifest
) -> None:
    urgent = Urgent(fleet, urgent_manifest, corrupt=True)
    points = urgent.points(runs)
    assert {"fetch.chunk", "partial.release.before_unlink"} <= {name for name, _ in points}
    points = points[::2]  # nothing of it takes the trial's place: few of the points differ

    def work(own: EngineRuns, name: str, nth: int) -> bool:
        where = f"after a kill at {name}:{nth}"
        folder, job = urgent.robot()
        was_killed = killed(own, job, name, nth)
        assert own.run(job) == 0, where
        state, policy = urgent.state(folder), SimulatedPolicy(folder / "policy.json").look()
        ended = state.seen[job.wait_for]
        assert (ended.state, ended.code) == (UpdateState.REJECTED, "BLOB_DIGEST_MISMATCH"), where
        assert state.trial is not None and state.trial.ref.version == "1.1.0", where
        assert state.state is UpdateState.TRIAL and state.blocked == {}, where
        assert policy["active"]["version"] == "1.1.0" and policy["lease"] is not None, where
        assert all("ROLLBACK" not in line for line in policy["log"]), where
        assert current_version(folder) == "1.0.0", where
        shutil.rmtree(folder)
        return was_killed

    assert sum(in_parallel(several, work, points)) >= 0.9 * len(points)
    fleet.server.be_good()


def test_killed_again_and_again_in_mid_download_it_goes_on_where_it_was(fleet: Fleet, runs: EngineRuns) -> None:
    folder, job = fleet.robot()
    weights = fleet.new.file("model.safetensors")
    assert weights is not None
    path = f"/{folder.name}/blobs/sha256/{weights.sha256}"
    fleet.server.behave(path, Behaviour(fail_after=8_000))  # so that no attempt gets far before its third chunk
    kills = 0
    while killed(runs, job, "fetch.chunk", 3):
        kills += 1
        assert kills < 30
        assert current_version(folder) == "1.0.0"
    fleet.server.be_good()
    assert kills >= 2
    starts = fleet.asked_from(folder, weights.sha256)
    assert starts == sorted(starts) and len(set(starts)) == len(starts), "every attempt begins behind the one before"
    assert current_version(folder) == "1.1.0"


def test_too_many_unclean_ends_of_a_trial_roll_it_back(fleet: Fleet, runs: EngineRuns) -> None:
    folder, job = fleet.robot()
    job.config["max_trial_attempts"] = 2
    job.config["min_trial_chunks"] = 1_000_000
    assert killed(runs, job, "entered.TRIAL", 1)
    assert killed(runs, job, "port.after_swap", 1)
    assert runs.run(job) == 0
    assert current_version(folder) == "1.0.0"
    store = Store(folder / "store", Filesystem())
    store.open()
    state = store.state
    store.close()
    assert [block.ref.version for block in state.blocked.values()] == ["1.1.0"]
    assert state.error_code == "TRIAL_ATTEMPTS"
    assert SimulatedPolicy(folder / "policy.json").look()["active"]["version"] == "1.0.0"


def test_a_clean_shutdown_in_a_trial_counts_no_attempt(fleet: Fleet, runs: EngineRuns) -> None:
    folder, job = fleet.robot()
    job.config["max_trial_attempts"] = 1
    stay = Job(**{**job.__dict__, "until_state": "TRIAL", "wait_for": ""})
    stay.config = {**job.config, "min_trial_chunks": 1_000_000}
    for _ in range(3):
        assert runs.run(stay) == 0
    assert runs.run(job) == 0
    assert current_version(folder) == "1.1.0"
