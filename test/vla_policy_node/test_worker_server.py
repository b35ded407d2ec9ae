"""Workers are forked by a server: they share its memory, belong to the node, and do not need it any more."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.scripted import TEST_FOLDER, scripted_bundle
from support.waits import wait_for
from support.worker_robot import WorkerRobot, gone

TORCH_SHARED_BYTES = 50 << 20


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children() -> set[int]:
    tasks = Path("/proc/self/task").iterdir()
    return {int(word) for task in tasks for word in (task / "children").read_text().split()}


def server_of(robot: WorkerRobot) -> int:
    server = wait_for(lambda: robot.pool._supply._server, "the server")
    return int(server.pid)


def test_a_worker_is_a_child_of_the_node_and_nothing_of_it_is_left_when_it_ends(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a", child_process=True)
    with WorkerRobot(spare=False) as robot:
        generation = robot.pool.prepare(tmp_path / "a")
        assert parent(generation.pid) == os.getpid()
        assert Path(f"/proc/{generation.pid}/comm").read_text().strip() == "policy_worker"
        child = int(robot.logged("child ").split()[1])
        generation.kill()
        assert gone(generation.pid) and gone(child)
        wait_for(lambda: generation.pid not in children(), "no zombie")


def test_the_end_of_the_server_costs_no_worker_and_another_one_comes(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a")
    with WorkerRobot(spare=False) as robot:
        first = robot.pool.prepare(tmp_path / "a")
        server = server_of(robot)
        os.kill(server, signal.SIGKILL)
        robot.logged(f"server of workers {server} was killed by SIGKILL")
        second = robot.pool.prepare(tmp_path / "a")
        robot.assert_works(first)
        robot.assert_works(second)
        assert server_of(robot) != server


def test_a_server_that_stands_still_costs_the_preparation_and_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_bundle(tmp_path / "a")
    monkeypatch.setattr("vla_policy_node.worker.child._FORK_TIMEOUT_S", 0.5)
    with WorkerRobot(spare=False) as robot:
        first = robot.pool.prepare(tmp_path / "a")
        server = server_of(robot)
        os.kill(server, signal.SIGSTOP)
        with pytest.raises(Exception, match="has forked no worker") as caught:
            robot.pool.prepare(tmp_path / "a")
        assert getattr(caught.value, "code", "") == "WORKER_START_FAILED"
        robot.assert_works(first)
        os.kill(server, signal.SIGCONT)
        robot.assert_works(robot.pool.prepare(tmp_path / "a"))


def test_where_an_import_leaves_a_thread_behind_each_worker_starts_on_its_own(tmp_path: Path) -> None:
    """A fork would lose the thread, and with it what it holds."""
    scripted_bundle(tmp_path / "a")
    (tmp_path / "with_a_thread.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"
    )
    with WorkerRobot(spare=False, imports=("with_a_thread",), paths=(TEST_FOLDER, str(tmp_path))) as robot:
        robot.logged("an import has started threads")
        generation = robot.pool.prepare(tmp_path / "a")
        assert "vla_policy_node.worker.process" in Path(f"/proc/{generation.pid}/cmdline").read_text()
        assert parent(generation.pid) == os.getpid()
        robot.assert_works(generation)


def test_workers_share_the_memory_of_what_was_imported() -> None:
    """Pages that nobody wrote to after the fork are there once, whoever maps them."""
    with WorkerRobot(imports=("torch",)) as robot:
        spare = robot.spare_ready()
        sizes = dict(line.split(":") for line in Path(f"/proc/{spare}/smaps_rollup").read_text().splitlines()[1:])
        anonymous, alone = (int(sizes[name].split()[0]) << 10 for name in ("Anonymous", "Private_Dirty"))
        assert anonymous - alone > TORCH_SHARED_BYTES, (anonymous, alone)
