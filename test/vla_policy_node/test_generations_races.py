"""Orders of events that are rare on a real machine: answers that come late, twice or never, and workers that die in between.

Control process and workers are played by hand here (their real selves: ``test_engine_*.py``), so that each order happens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.engine_rig import contract_text
from support.refusals import refused
from support.scripted import scripted_bundle

from vla_checkpoint.manifest import load_manifest
from vla_policy_node.config import PolicyNodeConfig
from vla_policy_node.contract.model import parse_contract
from vla_policy_node.errors import ControlError, PolicyNodeError
from vla_policy_node.generations import generations as module
from vla_policy_node.generations.generations import Generations
from vla_policy_node.generations.recovery import Recovery
from vla_policy_node.generations.residents import Loss, Resident
from vla_policy_node.generations.swapping import SwapRequest
from vla_policy_node.ipc.generation import GenerationHandle
from vla_policy_node.policies.base import FeatureSpec, PolicySpec
from vla_policy_node.worker.api import Generation, PrepareError, Timings


class PlayedControl:
    """Notes what it is asked; the test answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str, str]] = []  # generation, at, swap id
        self.cancelled: list[str] = []
        self.known: set[int] = set()
        self.spans: set[str] = set()
        self.mode = "RUNNING"
        self.gone = False

    def _check(self) -> None:
        if self.gone:
            raise ControlError("CONTROL_LOST", "gone")

    def begin_span(self, span: str) -> None:
        self._check()
        self.spans.add(span)

    def end_span(self, span: str, after_s: float = 0.0) -> None:
        self.spans.discard(span)

    def add_generation(self, handle: GenerationHandle, *, latency_s: float, limits: object = None) -> None:
        self._check()
        self.known.add(handle.id)

    def remove_generation(self, generation: int) -> None:
        self.known.discard(generation)
        self._check()

    def activate(self, generation: int, at: str, swap_id: str, timeout_s: float, cause: str) -> None:
        self._check()
        self.asked.append((generation, at, swap_id))
        self.spans.add(swap_id)  # counting begins with the request

    def cancel_activation(self, swap_id: str) -> None:
        self.cancelled.append(swap_id)

    def status(self) -> Any:
        return SimpleNamespace(mode=self.mode)


class PlayedPool:
    """Loads at once; ``dies`` names versions whose worker ends as it becomes ready."""

    def __init__(self) -> None:
        self.dies: set[str] = set()
        self.alive: set[int] = set()
        self.released: list[int] = []
        self.fails = False
        self.before_ready: Callable[[], None] = lambda: None
        self._last = 0

    def prepare(self, path: Path, **_: Any) -> Generation:
        if self.fails:
            raise PrepareError("LOAD_FAILED", "the test says so")
        self.before_ready()
        self._last += 1
        number, manifest = self._last, load_manifest(path)
        if manifest.version not in self.dies:
            self.alive.add(number)
        handle = GenerationHandle(number, manifest.version, manifest.digest, 16, 8, 2, 8, 8, -1, -1, -1)
        spec = PolicySpec({"observation.state": FeatureSpec((2,), "float32")}, 16, 8, 2)
        timings = Timings(load_s=1.0)
        alive, died, nothing = (lambda: number in self.alive), (lambda: "WORKER_DIED"), (lambda: None)
        return Generation(handle, manifest, spec, timings, 0, alive, died, nothing, nothing)

    def release(self, generation: Generation) -> None:
        self.alive.discard(generation.id)
        self.released.append(generation.id)


class Stage:
    """Generations (and their recovery) between a played control process and played workers."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.folder = folder
        for version in ("1.0.0", "1.1.0", "1.2.0"):
            scripted_bundle(folder / version, version, golden=False)
        settings = {"bundle_roots": (str(folder),), "swap_timeout_s": 20.0, **config}
        self.config = PolicyNodeConfig(**settings)
        self.control, self.pool = PlayedControl(), PlayedPool()
        self.reports: list[Any] = []
        self.errors: list[str] = []
        self.episode = 0
        self.generations = Generations(
            self.config,
            parse_contract(contract_text()),
            self.control,  # type: ignore[arg-type]
            self.pool,  # type: ignore[arg-type]
            on_change=lambda: None,
            on_report=self.reports.append,
            on_active_lost=lambda resident, lease, why: self.recovery.worker_lost(resident, lease, why),
        )
        self.recovery = Recovery(
            self.config,
            self.generations,
            current_episode=lambda: self.episode,
            report_error=lambda code, text: self.errors.append(code),
        )
        self._threads: list[threading.Thread] = []

    def close(self) -> None:
        self.generations.close()
        self.recovery.close()
        for thread in self._threads:
            thread.join(10.0)
            assert not thread.is_alive()

    def prepare(self, version: str) -> Resident:
        return self.generations.prepare(self.folder / version)

    def ask(self, call: Callable[[], object]) -> list[Any]:
        """Call on a thread of its own; the list gets what it returned, or the code of what it raised."""
        result: list[Any] = []

        def work() -> None:
            try:
                result.append(call())
            except PolicyNodeError as e:
                result.append(e.code)

        thread = threading.Thread(target=work)
        thread.start()
        self._threads.append(thread)
        return result

    def swap(self, version: str, **request: Any) -> list[Any]:
        count = len(self.control.asked)
        wanted = SwapRequest(bundle_path=str(self.folder / version), **request)
        result = self.ask(lambda: self.generations.swap(wanted))
        self.until(lambda: len(self.control.asked) > count or bool(result))
        return result

    def answer(self, index: int = -1, error: str = "") -> None:
        """Answer what the control process was asked: it has swapped, or it has not."""
        generation, _, swap_id = self.control.asked[index]
        if not error:
            self.control.spans.discard(swap_id)
        event = {"type": "SWAP_FAILED" if error else "SWAPPED", "swap_id": swap_id, "generation": generation}
        self.generations.on_control_event({**event, "error_code": error})

    def active(self, version: str, **request: Any) -> Resident:
        """Let a version act."""
        result = self.swap(version, **request)
        self.answer()
        self.until(lambda: bool(result))
        return result[0][0]  # type: ignore[no-any-return]

    def dies(self, resident: Resident) -> None:
        self.pool.alive.discard(resident.id)
        self.generations.lost(resident.id, Loss("WORKER_DIED", "it was killed"))

    @staticmethod
    def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.002)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


def test_an_answer_that_comes_after_everybody_gave_up_still_counts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ANSWER_S", 0.05)
    first = stage.active("1.0.0")
    result = stage.swap("1.1.0", timeout_s=0.05)
    stage.until(lambda: bool(result))
    assert result == ["CONTROL_UNRESPONSIVE"] and stage.generations.residents.active is first
    prepared = stage.generations.residents.prepared
    with refused("SWAP_IN_PROGRESS"):  # it may act this moment: nothing may take its memory
        stage.prepare("1.2.0")
    stage.answer()
    assert prepared is not None and stage.generations.residents.active is prepared
    assert stage.generations.residents.standby is first


def test_a_worker_that_dies_as_it_takes_over_counts_as_the_acting_one_lost(stage: Stage) -> None:
    first = stage.active("1.0.0")
    result = stage.swap("1.1.0", trial=True, trial_lease_s=60.0)
    target = stage.generations.residents.prepared
    assert target is not None
    stage.dies(target)  # its death is heard of before the answer
    stage.answer()  # the control process had swapped before that
    stage.until(lambda: bool(result))
    assert result == ["WORKER_LOST"]
    stage.until(lambda: len(stage.control.asked) == 3)
    assert stage.control.asked[2][:2] == (first.id, "NOW")  # on trial: the one before acts again
    stage.answer()
    stage.until(lambda: stage.generations.residents.active is first)
    assert stage.generations.lease is None and stage.generations.residents.all() == [first]


def code_of_swap(stage: Stage, resident: Resident) -> str:
    """Why a swap to a bundle that is in no memory is refused."""
    with pytest.raises(PolicyNodeError) as caught:
        stage.generations.swap(SwapRequest(digest=resident.digest))
    return caught.value.code


def test_whoever_asks_for_a_bundle_again_learns_whether_it_crashed_and_whether_it_had_acted(stage: Stage) -> None:
    stage.active("1.0.0")
    evicted = stage.prepare("1.1.0")
    waiting = stage.prepare("1.2.0")  # takes its place
    assert code_of_swap(stage, evicted) == "NOT_PREPARED"
    stage.dies(waiting)
    assert code_of_swap(stage, waiting) == "GENERATION_LOST"
    on_trial = stage.active("1.1.0", trial=True, trial_lease_s=60.0)
    stage.dies(on_trial)
    stage.until(lambda: stage.control.asked[-1][1] == "NOW")
    stage.answer()
    stage.until(lambda: stage.generations.residents.active is not None)
    assert code_of_swap(stage, on_trial) == "WORKER_LOST"
    again = stage.prepare("1.1.0")  # what was prepared anew may be tried again, and has not crashed since
    stage.prepare("1.2.0")
    assert code_of_swap(stage, again) == "NOT_PREPARED"


def test_a_worker_that_dies_as_it_becomes_ready_is_never_activated(stage: Stage) -> None:
    stage.pool.dies = {"1.0.0"}
    with pytest.raises(PrepareError) as caught:
        stage.prepare("1.0.0")
    assert caught.value.code == "WORKER_DIED" and stage.generations.residents.all() == []
    assert stage.pool.released == [1] and not stage.control.known and not stage.control.spans


def test_what_is_prepared_or_stands_by_is_never_taken_from_a_pending_swap(stage: Stage) -> None:
    stage.active("1.0.0")
    second = stage.active("1.1.0")
    result = stage.swap("1.0.0", at="EPISODE")  # back to the standby
    with pytest.raises(PolicyNodeError) as caught:
        stage.prepare("1.2.0")
    assert caught.value.code == "SWAP_IN_PROGRESS" and not stage.pool.released
    stage.answer()
    stage.until(lambda: bool(result))
    assert stage.generations.residents.standby is second
    stage.prepare("1.2.0")
    assert stage.pool.released == [second.id]


def test_an_automatic_swap_gives_way_to_what_came_first_and_takes_back_what_is_pending(stage: Stage) -> None:
    first = stage.active("1.0.0")
    pending = stage.swap("1.1.0", at="EPISODE")
    automatic = stage.ask(lambda: stage.generations.activate_now(first, "LEASE_EXPIRED", instead_of=first.id + 100))
    stage.until(lambda: bool(stage.control.cancelled))
    assert stage.control.cancelled[0] == stage.control.asked[-1][2]
    stage.answer()  # too late to take it back: it has happened
    stage.until(lambda: bool(pending) and bool(automatic))
    assert automatic == [None]  # the one that it was meant to replace no longer acts
    assert pending[0][0] is stage.generations.residents.active


def test_a_way_back_at_a_boundary_goes_on_at_once_when_the_robot_stops(stage: Stage) -> None:
    first = stage.active("1.0.0")
    stage.active("1.1.0")
    back = stage.swap("1.0.0", cause="ROLLBACK")
    assert stage.control.asked[-1][:2] == (first.id, "CHUNK")
    stage.control.mode = "HOLDING"
    stage.until(lambda: stage.control.asked[-1][1] == "NOW")
    stage.answer(-2, "SUPERSEDED")  # what was asked first
    assert not back
    stage.answer()
    stage.until(lambda: bool(back))
    assert stage.generations.residents.active is first and back[0][1].at == "NOW"

    stage.control.mode = "RUNNING"
    again = stage.swap("1.1.0", cause="ROLLBACK")
    stage.answer(error="MOTION_DISABLED")
    stage.until(lambda: stage.control.asked[-1][1] == "NOW")
    stage.answer(error="SEAM_JUMP")
    stage.until(lambda: bool(again))
    assert again == ["SEAM_JUMP"]  # asked once more only


def test_a_lost_generation_hands_over_to_the_swap_that_was_pending(stage: Stage) -> None:
    first = stage.active("1.0.0")
    pending = stage.swap("1.1.0", at="EPISODE")
    stage.dies(first)
    stage.until(lambda: stage.control.asked[-1][1] == "NOW")
    loads = len(stage.pool.alive)
    stage.answer()
    stage.until(lambda: bool(pending))
    stage.recovery._executor.submit(lambda: None).result(10.0)  # what the recovery had to do is done
    assert pending[0][0] is stage.generations.residents.active and len(stage.pool.alive) == loads
    assert not stage.errors


def test_the_episode_s_allowance_is_not_spent_by_a_swap_that_failed(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    first = stage.active("1.0.0")
    second = stage.active("1.1.0", trial=True, trial_lease_s=60.0)
    stage.episode = 5
    lease = stage.generations.lease
    assert lease is not None and lease.fallback is first
    lease.renewed_s = -1e9
    for error in ("SEAM_JUMP", ""):
        due = stage.generations.due_lease()
        assert due is lease and stage.generations.due_lease() is None  # told once
        count = len(stage.control.asked)
        stage.recovery.lease_expired(due)
        stage.until(lambda count=count: len(stage.control.asked) > count)  # type: ignore[misc]
        stage.answer(error=error)
        stage.recovery._executor.submit(lambda: None).result(10.0)
        assert stage.generations.lease is None or lease._next_try_s < time.monotonic() + 10.0  # soon again
        lease._next_try_s = -1.0  # that time has come
    assert stage.generations.residents.active is first and stage.errors == [
        "LEASE_EXPIRED",
        "SEAM_JUMP",
        "LEASE_EXPIRED",
    ]
    stage.dies(first)
    stage.until(lambda: stage.errors[-1] == "AUTO_SWAP_LIMIT")  # this episode has had its automatic swap
    stage.recovery.run_deferred()
    assert stage.generations.residents.active is None
    stage.episode = 0
    count = len(stage.control.asked)
    stage.recovery.run_deferred()
    stage.until(lambda: len(stage.control.asked) > count)
    stage.answer()
    stage.until(lambda: stage.generations.residents.active is not None)
    assert stage.generations.residents.active.version == "1.0.0"  # type: ignore[union-attr]  (loaded again)
    assert stage.generations.residents.standby is second
    stage.close()


def test_what_failed_on_trial_is_not_loaded_again_but_its_dead_fallback_is(stage: Stage) -> None:
    first = stage.active("1.0.0")
    second = stage.active("1.1.0", trial=True, trial_lease_s=60.0)
    stage.dies(first)
    assert stage.generations.lease is not None and stage.generations.residents.standby is None
    count = len(stage.control.asked)
    stage.dies(second)
    stage.until(lambda: len(stage.control.asked) > count)
    stage.answer()
    stage.until(lambda: stage.generations.residents.active is not None)
    active = stage.generations.residents.active
    assert active is not None and (active.version, active.id) == ("1.0.0", 3) and not stage.errors
    stage.recovery._executor.submit(lambda: None).result(10.0)

    third = stage.active("1.2.0", trial=True, trial_lease_s=60.0)
    stage.pool.fails = True
    stage.dies(active)
    stage.dies(third)
    stage.until(lambda: bool(stage.errors))
    assert stage.errors == ["POLICY_LOST"] and stage.generations.residents.all() == []


def test_a_renewed_lease_calls_the_way_back_off(stage: Stage) -> None:
    stage.active("1.0.0")
    second = stage.active("1.1.0", trial=True, trial_lease_s=60.0)
    lease = stage.generations.lease
    assert lease is not None
    lease.renewed_s = -1e9
    due = stage.generations.due_lease()
    assert due is lease
    stage.generations.on_manager_status(second.digest, "")  # the manager is back in the very last moment
    count = len(stage.control.asked)
    stage.recovery.lease_expired(due)
    stage.recovery._executor.submit(lambda: None).result(10.0)
    assert len(stage.control.asked) == count and stage.generations.lease is lease and not stage.errors


def test_what_the_control_process_counts_ends_with_what_it_was_counted_for(stage: Stage) -> None:
    stage.active("1.0.0")
    for _ in range(3):
        stage.prepare("1.1.0")
        stage.prepare("1.2.0")
    result = stage.swap("1.2.0")
    stage.answer(error="SEAM_JUMP")
    stage.until(lambda: bool(result))
    assert len(stage.control.spans) == 1  # of the one that is prepared still
    stage.active("1.2.0")
    assert not stage.control.spans and stage.control.known == {r.id for r in stage.generations.residents.all()}


def test_a_control_process_that_has_gone_answers_everybody(stage: Stage) -> None:
    stage.active("1.0.0")
    result = stage.swap("1.1.0", at="EPISODE")
    stage.control.gone = True
    stage.generations.control_lost()
    stage.until(lambda: bool(result))
    assert result == ["CONTROL_LOST"]
    request = SwapRequest(bundle_path=str(stage.folder / "1.1.0"))
    for call in (lambda: stage.prepare("1.2.0"), lambda: stage.generations.swap(request)):
        with pytest.raises(ControlError):
            call()
    active = stage.generations.residents.active
    assert active is not None
    stage.dies(active)  # its memory comes back all the same
    assert active.id in stage.pool.released
    stage.recovery._executor.submit(lambda: None).result(10.0)
    assert stage.errors == ["POLICY_LOST"]
