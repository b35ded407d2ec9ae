# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks' figures rest on: how lateness is reconstructed, memory summed and runs compared."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.waits import wait_for

from benchmarks.observed import ControlInThread, ObservedControl
from benchmarks.processes import Host, HostError, PeakMemory, cpu_s
from benchmarks.results import Table, finish, percentile, spread
from benchmarks.robot import FreePolicy, contract


@pytest.mark.parametrize("kind", [ObservedControl, ControlInThread])
def test_the_reconstructed_lateness_is_the_loops_own(tmp_path: Path, kind: type[ObservedControl]) -> None:
    policy = FreePolicy(100.0, 3)
    control = kind(contract(100.0, 3), policy.observation, {"kind": "record", "path": str(tmp_path / "commands")}, None)
    try:
        control.start(60.0)
        control.add_generation(policy.handle)
        control.activate(1, "NOW", "first", 60.0)
        control.enable(True)
        running = control.wait_for("RUNNING")
        seen = running.ticks - running.missed
        wait_for(lambda: (now := control.status()) is not None and now.ticks - now.missed >= seen + 20, "twenty ticks")
        control.enable(False)
        status = control.wait_for("INACTIVE")
        ticks = control.between(0, time.monotonic_ns())
    finally:
        control.close()
        policy.close()
    assert len(ticks.late_ms) >= 10
    assert min(ticks.late_ms) >= 0  # no command goes out before its deadline
    assert max(ticks.late_ms) == pytest.approx(status.worst_late_ms)
    assert ticks.missed >= sum(late > 10.0 for late in ticks.late_ms[1:])


def test_memory_is_that_of_all_processes_below() -> None:
    hold = "import subprocess, sys; b = bytearray(64 << 20); subprocess.run([sys.executable, '-c', %r])"
    child = "import sys, time; b = bytearray(96 << 20); print('up', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", hold % child], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdout.readline()
        with PeakMemory(process.pid) as memory:
            wait_for(lambda: memory.peak, "a sample")
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(60.0)
    assert 160 << 20 < memory.peak < 260 << 20


def test_processor_time_is_that_of_the_other_process() -> None:
    code = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdout.readline()
        assert 0.3 <= cpu_s(process.pid) < 0.4
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(60.0)


def test_a_program_that_ends_early_is_an_error_at_once() -> None:
    with Host("benchmarks.bare_loop", {"no": "settings"}) as host, pytest.raises(HostError, match="ended with 1"):
        host.hear(60.0)


def test_ratios_compare_runs_with_the_same_run_and_leave_out_zeros(tmp_path: Path) -> None:
    table = Table("title", (("ms", "ms", ".1f"),))
    for peer, ours in ((8.0, 2.0), (9.0, 0.0), (10.0, 1.0)):
        table.row("peer", "100 Hz").add(ms=peer)
        table.row("ours", "100 Hz").add(ms=ours)
    assert table.ratios("ms", "peer", "ours") == {"100 Hz": [4.0, 10.0]}
    table.note_ratio("ms", "peer", "ours", "time")
    assert "time, peer ÷ ours: 100 Hz: 7 (4–10)" in table.text()
    finish("name", tmp_path / "out", {"cores": 2}, {}, [table])
    written = json.loads((tmp_path / "out/name.json").read_text())
    assert written["tables"][0]["rows"][0]["ms"] == {"median": 9.0, "min": 8.0, "max": 10.0, "runs": [8.0, 9.0, 10.0]}


def test_percentiles_are_by_nearest_rank() -> None:
    numbers = list(range(100, 0, -1))
    assert [percentile(numbers, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert percentile([3.0], 0.99) == 3.0
    assert spread([], ".1f") == "–"
    assert math.isclose(percentile([1.0, 2.0], 0.5), 1.0)


def test_without_lerobots_server_its_bench_says_what_is_missing_and_measures_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.swap_lerobot", "--out", str(tmp_path)]
    environment = {**os.environ, "VLA_OTA_LEROBOT_PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, check=True, timeout=110, capture_output=True, text=True)
    assert "No module named 'lerobot'" in done.stdout and done.stdout.count("\n") == 1
    assert not list(tmp_path.iterdir())
