# SPDX-License-Identifier: Apache-2.0
"""What every test may rely on: a ROS domain of its own, and that no test leaves a process or shared memory behind."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import support.one_thread  # noqa: F401  (before anything that imports numpy)
from support import dds_profile
from support.kept import KEPT, children

from vla_sim.dds import claim_domain, remove_orphans
from vla_sim.witness import Witness

# No test asserts how long something takes on a busy machine. Each run tries the same examples; others are tried with
# --hypothesis-profile=default.
hypothesis.settings.register_profile("vla_ota", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("vla_ota")

# Before any rclpy context: nodes of a test never talk to anything outside this machine.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.setdefault("ROS_LOG_DIR", tempfile.mkdtemp(prefix="vla_ota_test_log_"))
os.environ[dds_profile.VARIABLE] = str(Path(os.environ["ROS_LOG_DIR"]) / f"fastdds-{os.getpid()}.xml")
dds_profile.write_test_profile(Path(os.environ[dds_profile.VARIABLE]))


_LONGEST_FIRST = ("ros", "vla_policy_node", "vla_ota_manager")
"""Folders: files are handed out in this order, so that no long one is left for the end, when the other workers are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes the witness counts control ticks: nothing else of ours may run beside it."""
    rank = {folder: number for number, folder in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(rank)))
    for item in items:
        if "witness" in getattr(item, "fixturenames", ()):
            item.add_marker("alone")


def _has_children() -> bool:
    """Whether this process has a child, be it a zombie: without one nothing descends from it, and /proc need not be read."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _descendants(spared: set[int] = frozenset()) -> dict[int, str]:  # type: ignore[assignment]
    """Return pid → command line of this process's living descendants, without zombies, ``spared`` and what descends from them."""
    found: dict[int, str] = {}
    frontier = [os.getpid()] if _has_children() else []
    while frontier:
        frontier = [child for pid in frontier for child in children(pid) if child not in spared]
        for pid in frontier:
            with contextlib.suppress(OSError):
                if (Path(f"/proc/{pid}") / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    found[pid] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def _no_process_left_behind(kept: set[int]) -> Iterator[None]:
    before = set(_descendants())
    yield
    deadline = time.monotonic() + 30.0
    left = _descendants(before | kept)
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = _descendants(before | kept)
    for pid in left:
        os.kill(pid, 9)
    assert not left, f"processes left behind: {left}"


@pytest.fixture(autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Fail a test that leaves a child process behind (session-wide helpers that were there before are theirs)."""
    yield from _no_process_left_behind(KEPT)


@pytest.fixture(autouse=True, scope="module")
def no_process_left_behind_by_a_file() -> Iterator[None]:
    """Fail the last test of a file whose fixtures leave a child process behind."""
    yield from _no_process_left_behind(set())


@pytest.fixture
def ros_domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A ROS_DOMAIN_ID that no other test of this machine uses while the fixture lives, also set in the environment."""
    with claim_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        yield domain


@pytest.fixture(scope="module")
def shared_domain() -> Iterator[int]:
    """A domain for the nodes that the tests of one file share."""
    with claim_domain() as domain:
        yield domain


@pytest.fixture
def witness() -> Iterator[Witness]:
    """Beside a loop at 50 Hz whose missed ticks are counted: says which of them are the machine's."""
    with Witness(50.0) as running:
        yield running


@pytest.fixture(autouse=True, scope="session")
def no_shared_memory_left_behind() -> Iterator[None]:
    """Processes killed on purpose leave Fast DDS files in /dev/shm; take away those that nobody uses any more."""
    yield
    remove_orphans()
