"""Workers are forked by a server: they share its memory, belong to the node, and do not need it any more."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from support.kept import children
from support.scripted import TEST_FOLDER, scripted_bundle
from support.waits import wait_for
from support.worker_robot import WorkerRobot, gone

TORCH_SHARED_BYTES = 50 << 20


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


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


def test_a_server_that_stands_still_is_replaced_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_bundle(tmp_path / "a")
    monkeypatch.setattr("vla_policy_node.worker.child.FORK_TIMEOUT_S", 0.5)
    others = children()
    with WorkerRobot(spare=False) as robot:
        first = robot.pool.prepare(tmp_path / "a")
        server = server_of(robot)
        os.kill(server, signal.SIGSTOP)
        second = robot.pool.prepare(tmp_path / "a")
        robot.assert_works(first)
        robot.assert_works(second)
        assert gone(server)
        wait_for(lambda: children() - others <= {first.pid, second.pid, server_of(robot)}, "no zombie")


def test_while_a_worker_is_being_forked_the_loss_of_another_one_is_noticed(tmp_path: Path) -> None:
    scripted_bundle(tmp_path / "a")
    with WorkerRobot(spare=True, spare_delay_s=3600.0) as robot:
        acting = robot.pool.prepare(tmp_path / "a")
        server = server_of(robot)
        os.kill(server, signal.SIGSTOP)
        robot.pool.ensure_spare()
        forking = wait_for(lambda: robot.pool._supply._spare_thread, "the spare being forked")
        acting.kill()
        assert robot.wait_for(lambda e: e.kind == "LOST").generation is acting
        assert forking.is_alive()
        os.kill(server, signal.SIGCONT)
        robot.spare_ready()


@pytest.mark.parametrize("what", ["import time; time.sleep(3600)", "import os; os.abort()"])
def test_an_import_that_hangs_or_crashes_costs_no_bundle_of_another_type(tmp_path: Path, what: str) -> None:
    scripted_bundle(tmp_path / "a")
    (tmp_path / "bad_module.py").write_text(what)
    modules = {"bad": "bad_module", "scripted": "support.scripted_policy"}
    robot = WorkerRobot(spare=False, policy_modules=modules, paths=(TEST_FOLDER, str(tmp_path)))
    robot.pool.start("bad")
    with contextlib.closing(robot.pool):
        server_of(robot)
        robot.assert_works(robot.pool.prepare(tmp_path / "a"))


def test_what_has_changed_on_the_disk_since_it_was_imported_is_imported_anew(tmp_path: Path) -> None:
    """A policy's package is upgraded while the node runs."""
    scripted_bundle(tmp_path / "a")
    module = tmp_path / "upgraded.py"
    module.write_text("print('the first version', flush=True)")
    with WorkerRobot(spare=False, imports=("upgraded",), paths=(TEST_FOLDER, str(tmp_path))) as robot:
        robot.logged("the first version")
        wait_for(lambda: robot.pool._supply._server and robot.pool._supply._server.waiting, "the server's imports")
        module.write_text("print('the second version', flush=True)")
        os.utime(module, ns=(1, 1))
        robot.assert_works(robot.pool.prepare(tmp_path / "a"))
        robot.logged("the second version")


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
