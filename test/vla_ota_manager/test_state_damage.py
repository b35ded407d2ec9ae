# SPDX-License-Identifier: Apache-2.0
"""A state document is read whole or set aside for the one before: whatever was read can be saved, listed and gone on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.ota import Robot, shared_weights
from support.simulated_policy import SimulatedPolicy

from vla_ota_manager.config import OtaConfig
from vla_ota_manager.engine import UpdateEngine
from vla_ota_manager.records import Event
from vla_ota_manager.states import UpdateState
from vla_ota_manager.store.filesystem import Filesystem
from vla_ota_manager.store.state import State
from vla_ota_manager.store.store import Store
from vla_sim.checkpoint_server import Behaviour, CheckpointServer

S = UpdateState
TOKENS = {"@NaN@": "NaN", "@Infinity@": "Infinity", "@-Infinity@": "-Infinity", "@1e400@": "1e400", "@huge@": "9" * 400}
"""What JSON texts may hold and Python would not write."""
NASTY: list[Any] = [
    *TOKENS, None, True, False, 0, -1, 1, 14, 15, 2**62, 2**63, 2**64, 0.5, -0.5, 1e300, 253402300800.0, "", "x", "1.0.0",
    "2.0.0", "0" * 64, "pick_place", "../..", "\ud800", "\x00", "u-1.2.0", [], {}, [None], {"a": 1}, [[[[[[[[[[[[1]]]]]]]]]]]],
]  # fmt: skip


class Template:
    """A robot's store in the midst of something, and what its policy node is doing."""

    def __init__(self, folder: Path, config: dict[str, Any], **changes: Any) -> None:
        self.folder, self.config = folder, {**config, "store_dir": str(folder / "store")}
        self.document = {**json.loads((folder / "store/state.json").read_bytes()), **changes}
        self.paths = [list(self._paths(value, (key,))) for key, value in self.document.items() if key != "schema"]
        """By field of the document."""

    def _paths(self, value: Any, path: tuple) -> Iterator[tuple]:
        yield path
        entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, entry in entries:
            yield from self._paths(entry, (*path, key))

    def path(self, field: int, place: int) -> tuple:
        """Return a path in the document; every field is as likely as any other."""
        paths = self.paths[field % len(self.paths)]
        return paths[place % len(paths)]

    def value(self, path: tuple) -> Any:
        value = self.document
        for key in path:
            value = value[key]
        return value

    def damaged(self, path: tuple, how: str, value: Any) -> bytes:
        """Return the document with one value changed, removed, or doubled under another name."""
        document = json.loads(json.dumps(self.document))
        place = document
        for key in path[:-1]:
            place = place[key]
        if how == "change":
            place[path[-1]] = value
        elif how == "remove":
            del place[path[-1]]
        elif isinstance(place, dict):
            place[str(value)] = place.pop(path[-1])
        else:
            place.append(value)
        text = json.dumps(document)
        for token, raw in TOKENS.items():
            text = text.replace(json.dumps(token), raw)
        return text.encode()

    def put(self, data: bytes) -> None:
        """Make the store as it was, but for a damaged state.json."""
        store = self.folder / "store"
        for path in store.glob("state.json*"):
            path.unlink()
        (store / "state.json").write_bytes(data)
        (store / "state.json.old").write_text(json.dumps(self.document))
        SimulatedPolicy.boot(self.folder / "policy.json", store / "current")


def run_into(robot: Robot, phase: str) -> None:
    """Bring a robot into the midst of something, with something of everything in its state."""
    robot.settings = {"min_trial_chunks": 100_000, "block_chunks": 1, "retries": 0}
    robot.adopt("1.0.0")
    for version in ("1.1.0", "1.2.0", "1.3.0", "1.4.0"):
        robot.publish(version, tensors=shared_weights(int(version[2]), 20_000))
    engine = robot.start()
    engine.pin("1.0.0")
    robot.offer("1.1.0")
    robot.reach(S.TRIAL)
    assert engine.commit().success
    robot.offer("1.2.0")
    robot.reach(S.TRIAL)
    robot.score(1.0, "hard_limit")
    robot.ended("u-1.2.0")
    for _ in range(30):
        robot.score(0.2)
    robot.until(lambda: len(engine._ctx.inbox) == 0)
    if phase == "FETCHING":
        robot.server.behave("/blobs/", Behaviour(stall_after=1000))
    robot.offer("1.3.0")
    robot.reach(S[phase] if phase != "ROLLING_BACK" else S.TRIAL)
    robot.offer("1.4.0")
    if phase == "ROLLING_BACK":
        robot.say(refuse_swap="SWAP_IN_PROGRESS")
        robot.score(1.0, "hard_limit")
        robot.reach(S.ROLLING_BACK)
    robot.stop()
    robot.server.be_good()


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Template]]:
    made = {}
    folder = tmp_path_factory.mktemp("damage")
    with ExitStack() as servers:
        for phase in ("TRIAL", "FETCHING", "ROLLING_BACK"):
            (folder / phase / "registry").mkdir(parents=True)
            server = servers.enter_context(CheckpointServer(folder / phase / "registry"))
            robot = Robot(folder / phase, server)
            run_into(robot, phase)
            made[phase] = Template(robot.folder, robot.config_arguments())
        shutil.copytree(folder / "TRIAL", folder / "IDLE", symlinks=True)
        idle = {"trial": None, "update": None, "state": int(S.COMMITTED), "queue": []}
        made["IDLE"] = Template(folder / "IDLE", made["TRIAL"].config, **idle)
        yield made


def damages(template: Template) -> st.SearchStrategy[bytes]:
    paths = st.builds(template.path, st.integers(0, 99), st.integers(0, 9999))
    values = st.sampled_from(NASTY) | paths.map(template.value)
    return st.builds(
        template.damaged, paths, st.sampled_from(["change", "change", "change", "remove", "rename"]), values
    )


def check_usable(store: Store) -> None:
    """What was read can be saved and read again, changed and listed; ``current`` agrees with it."""
    state = store.state
    assert State.from_bytes(state.to_bytes()) == state
    with store.edit() as draft:
        draft.history.append(Event(1.0, "", "IDLE", "IDLE", ""))
    assert State.from_bytes((store.root / "state.json").read_bytes()) == store.state
    assert all(event.to_line() for event in state.history)
    assert state.committed is not None and store.has(state.committed)
    assert (store.root / "current").resolve() == store.path_of(state.committed)


@pytest.mark.parametrize("phase", ["TRIAL", "FETCHING", "ROLLING_BACK", "IDLE"])
def test_whatever_is_damaged_what_is_read_can_be_saved_and_listed(templates: dict[str, Template], phase: str) -> None:
    template = templates[phase]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(damages(template))
    def holds(data: bytes) -> None:
        template.put(data)
        store = Store(template.folder / "store", Filesystem())
        store.open()
        try:
            check_usable(store)
        finally:
            store.close()

    holds()


@pytest.mark.parametrize("phase", ["TRIAL", "FETCHING", "ROLLING_BACK"])
def test_whatever_is_damaged_the_engine_starts_and_works(templates: dict[str, Template], phase: str) -> None:
    template = templates[phase]

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(damages(template))
    def holds(data: bytes) -> None:
        template.put(data)
        statuses: list[Any] = []
        engine = UpdateEngine(
            OtaConfig(**template.config), SimulatedPolicy(template.folder / "policy.json"), on_status=statuses.append
        )
        engine.start()
        robot = Robot.__new__(Robot)
        robot.engine, robot.events = engine, []
        try:
            robot.until(lambda: len(statuses) > 3)
            assert engine.list_models().success
            assert not [status for status in statuses if status.error_code == "INTERNAL_ERROR"], statuses[-1]
        finally:
            assert engine.stop()

    holds()


# -- one by one, what was found -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["NaN", "Infinity", "1e400"])
@pytest.mark.parametrize("where", ["expires_s", "time_s"])
def test_a_number_that_cannot_be_written_again_is_not_read(
    templates: dict[str, Template], token: str, where: str
) -> None:
    template = templates["TRIAL"]
    path = next(path for paths in template.paths for path in paths if path[-1] == where)
    template.put(template.damaged(path, "change", f"@{token}@"))
    store = Store(template.folder / "store", Filesystem())
    store.open()
    store.close()
    assert store.state.error_code == "STATE_CORRUPT" and list(store.root.glob("state.json.corrupt-*"))
    assert [block.ref.version for block in store.state.blocked.values()] == ["1.2.0"]  # as in the state before
    check_usable(store)


def test_infinite_attempts_do_not_keep_the_manager_from_starting(templates: dict[str, Template]) -> None:
    template = templates["TRIAL"]
    template.document["attempts"] = {"0" * 64: 1}
    template.put(template.damaged(("attempts", "0" * 64), "change", "@Infinity@"))
    store = Store(template.folder / "store", Filesystem())
    store.open()
    store.close()
    assert store.state.attempts == {"0" * 64: 1}


@pytest.mark.parametrize("version", ["9.9.9", "1.0.0"], ids=["not on disk", "another on disk"])
def test_a_committed_version_of_another_name_is_known_by_its_digest(
    templates: dict[str, Template], version: str
) -> None:
    template = templates["IDLE"]
    template.put(template.damaged(("committed", "version"), "change", version))
    store = Store(template.folder / "store", Filesystem())
    store.open()
    store.close()
    assert store.state.committed.version == "1.1.0" and (store.root / "current").resolve().name == "1.1.0"
    assert store.state.committed.digest == template.document["committed"]["digest"] and store.recovery_notes


@pytest.mark.parametrize("state", [S.IDLE, S.PREPARING, S.SWAPPING, S.COMMITTED])
def test_a_trial_that_does_not_fit_the_state_is_not_read(templates: dict[str, Template], state: UpdateState) -> None:
    template = templates["TRIAL"]
    template.put(template.damaged(("state",), "change", int(state)))
    store = Store(template.folder / "store", Filesystem())
    store.open()
    store.close()
    assert store.state.error_code == "STATE_CORRUPT" and store.state.state is S.TRIAL
