"""The demo leaves no process behind, and names the log of one that failed; no two runs on a machine share a ROS domain."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.waits import wait_for

from vla_sim.dds import DEMO_DOMAINS, claim_domain
from vla_sim.demo import processes as module
from vla_sim.demo.processes import Processes

PROGRAMS = {
    "stubborn": "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(60)",
    "failing": "raise SystemExit('the reason')",
    "speaking": "import os, sys; print(os.environ['ROS_DOMAIN_ID'], open(sys.argv[sys.argv.index('--params-file') + 1]).read())",
}


@pytest.fixture
def programs(tmp_path: Path) -> Processes:
    for name, text in PROGRAMS.items():
        (tmp_path / f"demo_{name}.py").write_text(text)
    return Processes(tmp_path / "logs", {"PYTHONPATH": str(tmp_path), "ROS_DOMAIN_ID": "77"})


def test_a_process_that_ignores_the_request_ends_with_the_demo_even_if_that_fails(
    programs: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STOP_S", 0.3)
    with pytest.raises(ZeroDivisionError), programs:
        for times in (1, 2):  # a killed one can be started again, and its log goes on
            programs.start("stubborn", "demo_stubborn", {})
            wait_for(lambda times=times: programs.log_file("stubborn").read_text().count("here") == times, "its start")
            if times == 1:
                programs.kill("stubborn")
                assert programs.ended() == [], "it was killed on purpose"
        _ = 1 / 0
    # the fixture no_process_left_behind fails this test otherwise


def test_one_that_fails_is_named_with_its_log(programs: Processes) -> None:
    with programs:
        programs.start("failing", "demo_failing", {})
        wait_for(programs.ended, "the failure to be noticed")
        (text,) = programs.ended()
        assert "failing" in text and "status 1" in text and str(programs.log_file("failing")) in text
    assert "the reason" in programs.log_file("failing").read_text()


def test_parameters_and_domain_reach_the_process(programs: Processes) -> None:
    with programs:
        programs.start("speaking", "demo_speaking", {"store_dir": "/somewhere", "alpha": 0.05})
        wait_for(programs.ended, "its end")
    text = programs.log_file("speaking").read_text()
    assert text.startswith("77 ") and '"store_dir": "/somewhere"' in text and '"alpha": 0.05' in text


def test_two_demos_never_share_a_domain() -> None:
    with claim_domain(DEMO_DOMAINS) as one, claim_domain(DEMO_DOMAINS) as other:
        assert one != other and {one, other} <= set(DEMO_DOMAINS)
