# SPDX-License-Identifier: Apache-2.0
"""The doctor judges memory, scheduling, middleware, clock and the workers' interpreter by what it measured."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vla_doctor import machine, worker
from vla_doctor.findings import Finding, Level

MIB = 1 << 20
TOP = Path(__file__).resolve().parents[2]


def codes(findings: list[Finding]) -> list[str]:
    return [f.code for f in findings]


def test_memory_must_hold_two_policies_with_their_processes_and_the_reserve() -> None:
    need = {"bundle": 1000 * MIB, "worker": 300 * MIB, "reserve": 100 * MIB}
    assert codes(machine.check_memory(2700 * MIB, resident=0, **need)) == [""]
    short = machine.check_memory(2700 * MIB - 1, resident=0, **need)[0]
    assert (short.code, short.level) == ("MEMORY_SHORT", Level.FAIL)


def test_policies_that_are_loaded_already_are_not_asked_for_again() -> None:
    need = {"bundle": 1000 * MIB, "worker": 300 * MIB, "reserve": 100 * MIB}
    assert codes(machine.check_memory(1400 * MIB, resident=1, **need)) == [""]
    assert codes(machine.check_memory(100 * MIB, resident=2, **need)) == [""]
    assert codes(machine.check_memory(100 * MIB, resident=3, **need)) == [""]
    assert codes(machine.check_memory(99 * MIB, resident=2, **need)) == ["MEMORY_SHORT"]


def test_a_robot_that_loads_in_place_needs_the_memory_of_one_policy() -> None:
    need = {"bundle": 1000 * MIB, "worker": 300 * MIB, "reserve": 100 * MIB, "generations": 1}
    assert codes(machine.check_memory(1400 * MIB, resident=0, **need)) == [""]
    assert codes(machine.check_memory(1400 * MIB - 1, resident=0, **need)) == ["MEMORY_SHORT"]
    loaded = machine.check_memory(100 * MIB, resident=1, **need)[0]
    assert loaded.code == "" and "one policy is loaded already" in loaded.text


def test_what_the_user_may_not_do_comes_with_the_limits_line_for_that_user() -> None:
    found = machine.check_privileges(machine.Privileges(fifo=False, memlock_bytes=8 * MIB), 10)
    assert codes(found) == ["FIFO_REFUSED", "MEMLOCK_LOW"]
    user = machine.user_name()
    assert f"`{user} - rtprio 10`" in found[0].remedy and f"`{user} - memlock unlimited`" in found[1].remedy
    assert codes(machine.check_privileges(machine.Privileges(fifo=True, memlock_bytes=-1), 10)) == [""]


def test_the_probe_leaves_this_process_under_its_own_scheduler() -> None:
    before = os.sched_getscheduler(0)
    machine.probe_privileges(10)
    assert os.sched_getscheduler(0) == before


def test_pictures_need_a_segment_that_holds_several_of_them() -> None:
    ours = {"FASTRTPS_DEFAULT_PROFILES_FILE": str(TOP / "config/fastdds.xml")}
    picture = 640 * 480 * 3
    assert codes(machine.check_middleware("rmw_fastrtps_cpp", {}, picture)) == ["SHM_SEGMENT_SMALL"]
    assert codes(machine.check_middleware("rmw_fastrtps_cpp", ours, picture)) == [""]
    assert codes(machine.check_middleware("rmw_fastrtps_cpp", {}, 64 * 64 * 3)) == [""]
    assert codes(machine.check_middleware("rmw_cyclonedds_cpp", {}, picture)) == [""]


def test_a_profile_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.xml").write_text("<dds><segment_size>many</segment_size></dds>")
    for name in ("broken.xml", "none.xml"):
        environment = {"FASTRTPS_DEFAULT_PROFILES_FILE": str(tmp_path / name)}
        found = machine.check_middleware("rmw_fastrtps_cpp", environment, 0)
        assert codes(found) == ["DDS_PROFILE_UNREADABLE"] and name in found[0].text


def test_a_clock_that_was_never_set_fails() -> None:
    assert codes(machine.check_clock(1.8e9)) == [""]
    assert codes(machine.check_clock(0.0)) == ["CLOCK_WRONG"]


# -- the workers' interpreter -----------------------------------------------------------------------------------------------


def test_an_interpreter_that_is_not_there_or_is_none_fails(tmp_path: Path) -> None:
    script = tmp_path / "shell"
    script.write_text("#!/bin/sh\necho hello\n")
    script.chmod(0o755)
    for python in (str(tmp_path / "none"), str(script), "/bin/false"):
        parameters = {"worker_python": python}
        found = worker.check_worker(worker.probe_worker(parameters), parameters)
        assert codes(found) == ["WORKER_PYTHON_MISSING"] and python in found[0].text


def test_a_module_that_cannot_be_imported_is_named_with_the_pip_line(tmp_path: Path) -> None:
    (tmp_path / "half_broken.py").write_text("import no_such_thing_at_all")
    parameters = {"worker_paths": (str(tmp_path),)}
    probe = worker.probe_worker(parameters, ("json", "half_broken"))
    found = worker.check_worker(probe, parameters)
    assert codes(found) == ["WORKER_IMPORT"]
    assert "no_such_thing_at_all" in found[0].text and f"{sys.executable} -m pip install half_broken" in found[0].remedy


def test_an_interpreter_that_hangs_is_ended_and_reported(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text("import time; time.sleep(60)")
    parameters = {"worker_paths": (str(tmp_path), str(tmp_path / "gone"))}
    probe = worker.probe_worker(parameters, ("sleeper",), timeout_s=1.5)
    assert codes(worker.check_worker(probe, parameters)) == ["WORKER_PATH_MISSING", "WORKER_SLOW"]


def test_an_interpreter_in_order_tells_versions_and_its_memory() -> None:
    probe = worker.probe_worker(None, ("numpy",))
    found = worker.check_worker(probe, None)
    assert codes(found) == [""] and "numpy" in found[0].text
    assert probe.peak_bytes > 4 * MIB


def test_a_device_that_torch_does_not_know_fails() -> None:
    parameters = {"device": "no_such_device:0"}
    found = worker.check_worker(worker.probe_worker(parameters), parameters)
    assert codes(found) == ["WORKER_DEVICE"] and "no_such_device" in found[0].text


def test_a_robot_whose_policies_run_on_a_worker_host_needs_neither_torch_nor_the_device() -> None:
    parameters = {"device": "no_such_device:0", "worker_host": "10.0.0.7:7447"}
    probe = worker.probe_worker(parameters)
    assert codes(worker.check_worker(probe, parameters)) == [""]
    assert probe.answer is not None and list(probe.answer["versions"]) == ["numpy"]
