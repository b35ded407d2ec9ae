"""The demo leaves no process behind, names the log of one that failed, and never shares a ROS domain with another demo."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.ros import wait_for

from vla_sim.demo import processes as module
from vla_sim.demo.processes import Processes, claim_domain

PROGRAMS = {
    "sleeper": "import time; print('here', flush=True); time.sleep(60)",
    "stubborn": "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(60)",
    "failing": "raise SystemExit('the reason')",
    "speaking": "import os, sys; print(os.environ['ROS_DOMAIN_ID'], open(sys.argv[sys.argv.index('--params-file') + 1]).read())",
}


@pytest.fixture
def programs(tmp_path: Path) -> Processes:
    for name, text in PROGRAMS.items():
        (tmp_path / f"demo_{name}.py").write_text(text)
    return Processes(tmp_path / "logs", {"PYTHONPATH": str(tmp_path), "ROS_DOMAIN_ID": "77"})


def start(programs: Processes, name: str) -> None:
    programs.start(name, f"demo_{name}")
    wait_for(lambda: "here" in programs.log_file(name).read_text(), f"{name} to start")


def test_every_process_ends_with_the_demo(programs: Processes) -> None:
    with programs:
        start(programs, "sleeper")
        assert programs.ended() == []
    # the fixture no_process_left_behind fails this test otherwise


def test_a_process_that_ignores_the_request_is_made_to_end(
    programs: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STOP_S", 0.3)
    with programs:
        start(programs, "stubborn")


def test_a_process_ends_also_when_the_demo_fails(programs: Processes) -> None:
    with pytest.raises(ZeroDivisionError), programs:
        start(programs, "sleeper")
        _ = 1 / 0


def test_one_that_fails_is_named_with_its_log(programs: Processes) -> None:
    with programs:
        programs.start("failing", "demo_failing")
        wait_for(programs.ended, "the failure to be noticed")
        (text,) = programs.ended()
        assert "failing" in text and "status 1" in text and str(programs.log_file("failing")) in text
    assert "the reason" in programs.log_file("failing").read_text()


def test_a_killed_process_can_be_started_again_and_its_log_goes_on(programs: Processes) -> None:
    with programs:
        start(programs, "sleeper")
        programs.kill("sleeper")
        assert programs.ended() == [], "it was killed on purpose"
        programs.start("sleeper", "demo_sleeper")
        wait_for(lambda: programs.log_file("sleeper").read_text().count("here") == 2, "the second start")


def test_parameters_and_domain_reach_the_process(programs: Processes) -> None:
    with programs:
        programs.start("speaking", "demo_speaking", {"store_dir": "/somewhere", "alpha": 0.05})
        wait_for(programs.ended, "its end")
    text = programs.log_file("speaking").read_text()
    assert text.startswith("77 ") and '"store_dir": "/somewhere"' in text and '"alpha": 0.05' in text


def test_two_demos_never_share_a_domain() -> None:
    with claim_domain() as one, claim_domain() as other:
        assert one != other
        assert {one, other} <= set(range(80, 102))
