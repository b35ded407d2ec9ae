"""The witness sees what the machine does to a process that only sleeps, and takes the blame for that alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.engine_rig import EngineRig
from support.scripted import scripted_bundle
from support.waits import wait_for

from vla_sim.witness import Late, Witness, machines_share

PERIOD_S = 0.02


def stall(begin_s: float, length_s: float) -> Late:
    return Late(begin_s, begin_s + length_s, length_s - PERIOD_S / 5)


@pytest.mark.parametrize(
    ("missed", "stalls_s", "share"),
    [
        (0, [0.5], 0),  # a stall that cost nothing
        (3, [], 0),  # no stall: all ours
        (2, [0.019], 0),  # too short for a miss
        (2, [0.021], 2),  # the late tick and the skipped one
        (5, [0.021], 2),  # more than fit into it are ours
        (5, [0.1], 5),
        (9, [0.021, 0.019, 0.061], 6),
    ],
)
def test_the_machines_are_at_most_the_ticks_that_fit_into_its_stalls(
    missed: int, stalls_s: list[float], share: int
) -> None:
    assert machines_share(missed, PERIOD_S, [stall(10.0 * i, s) for i, s in enumerate(stalls_s)]) == share


def test_processors_that_stand_still_together_are_one_stall() -> None:
    assert machines_share(9, PERIOD_S, [stall(0.0, 0.05), stall(0.01, 0.05), stall(0.0, 0.01)]) == 3


def test_the_share_is_what_the_loops_own_schedule_would_have_missed() -> None:
    """A stall that begins just before a deadline costs most; the loop's schedule then counts what the share allows."""
    from vla_policy_node.control.counters import Counters
    from vla_policy_node.control.schedule import Schedule

    for stall_ms in (5, 19, 21, 39, 41, 60, 333):
        schedule, counters = Schedule(20_000_000, 0), Counters()
        late, skipped = schedule.finish(stall_ms * 1_000_000)
        counters.add(late, 20_000_000, skipped, starved=False, clamped=False)
        assert machines_share(1000, PERIOD_S, [stall(0.0, stall_ms / 1e3)]) == counters.missed


def test_it_sees_a_stall_while_it_lasts_and_afterwards_with_its_moment_and_length() -> None:
    with Witness(1 / PERIOD_S) as witness:
        wait_for(lambda: not witness.late(time.monotonic()), "a moment without a stall of the machine")
        begin_s = time.monotonic()
        os.kill(witness.pids[0], signal.SIGSTOP)
        time.sleep(0.5)
        overdue = max(witness.late(begin_s), key=lambda w: w.late_s)  # the machine may stall too, for less
        assert begin_s - PERIOD_S <= overdue.awake_s
        os.kill(witness.pids[0], signal.SIGCONT)
        end_s = time.monotonic()
        wait_for(lambda: all(w.woke_s < time.monotonic() - 0.01 for w in witness.late(begin_s)), "it to go on")
        seen = max(witness.late(begin_s), key=lambda w: w.late_s)
        assert seen.awake_s == pytest.approx(overdue.awake_s, abs=0.005)
        assert seen.woke_s - seen.awake_s >= 0.5 and begin_s < seen.woke_s
        assert machines_share(4, PERIOD_S, witness.late(begin_s, end_s)) == 4
        assert seen not in witness.late(seen.woke_s + 1.0) and seen not in witness.late(0.0, seen.awake_s - 1.0)


def test_a_stall_of_the_loop_alone_stays_the_loops_and_one_of_both_is_the_machines(
    tmp_path: Path, witness: Witness
) -> None:
    scripted_bundle(tmp_path / "1.0.0", "1.0.0")
    with EngineRig(tmp_path, model_path=str(tmp_path / "1.0.0")) as rig:
        rig.wait_running("1.0.0")
        pid = rig.engine._control.pid
        assert pid is not None
        for stopped, whose in (([pid], "ours"), ([pid, witness.pids[0]], "the machine's")):
            before, begin_s = rig.control.missed, time.monotonic()
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for process in stopped:
                    os.kill(process, number)
                time.sleep(0.3)
            rig.wait_for(
                lambda before=before: rig.control.missed >= before + 14, "the ticks of the stall to be counted"
            )
            missed = rig.control.missed - before
            assert (witness.share(missed, begin_s) == missed) == (whose == "the machine's")


def test_it_runs_on_every_processor_above_the_loop_where_that_is_allowed() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(11))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        expected = (os.SCHED_FIFO, 11)
    except OSError:
        expected = (os.SCHED_OTHER, 0)
    with Witness(100.0, loops_priority=10) as witness:
        assert {(os.sched_getscheduler(pid), witness.fifo) for pid in witness.pids} == {expected}
        assert [os.sched_getaffinity(pid) for pid in witness.pids] == [{cpu} for cpu in sorted(os.sched_getaffinity(0))]


def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = "from vla_sim.witness import Witness\nwith Witness(100.0) as w: print(*w.pids, flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None and parent.stdout is not None
    pids = parent.stdout.readline().split()
    parent.kill()
    parent.wait(40)
    parent.stdout.close()
    parent.stdin.close()
    wait_for(lambda: not any(Path("/proc", pid.decode()).exists() for pid in pids), "the witness to end")
