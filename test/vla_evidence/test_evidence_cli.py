# SPDX-License-Identifier: Apache-2.0
"""`vla-evidence` as people and scripts use it: figures, codes and exit statuses."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.logs import begin, keep

from vla_evidence.cli import main
from vla_evidence.log.replay import LoggedJudgement

TOP = Path(__file__).resolve().parents[2]


def run(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Run it in this process (a new one takes a second to start); return what it writes to stdout and stderr."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        assert main([*map(str, arguments)]) == code, out.getvalue() + error.getvalue()
    return out.getvalue(), error.getvalue()


def answer(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """Run it; return its JSON."""
    document: dict[str, Any] = json.loads(run(*arguments, "--json", code=code)[0])
    assert document["ok"] is (code == 0)
    return document


def process(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    settings = {"planned_episodes": 40, "looks": 2, "draws": 99, "arms": {"a": 0, "b": 1}}
    judgement = begin(LoggedJudgement, path, "ab_robots", "x", settings)
    for number in range(40):
        judgement.choose("ab"[number % 2], f"e{number}", float(number))
        judgement.outcome(f"e{number}", number % 3 > 0, number + 0.5)
        if number % 10 == 0:
            judgement.verdict(number + 0.5)
    judgement.verdict(40.0)
    keep(judgement, path)
    return path


def test_plan_prints_the_reference_figures_for_people_and_machines() -> None:
    text = run("plan", "ab", "--rate-a", "0.85", "--rate-b", "0.88", "--runs", "0")[0]
    assert "2,036" in text and "50 robots" in text
    plan = answer("plan", "noninferiority", "--rate", "0.87", "--margin", "0.1", "--share", "0.05", "--runs", "0")
    assert plan["fixed"]["episodes"] == 74


def test_plan_simulates_the_sequential_design_and_says_how_sure_it_is() -> None:
    detect = ("plan", "detect", "--incumbent", "0.87", "--canary", "0.75", "--runs", "40")
    text, bar = run(*detect, "--within-days", "1")
    assert "±" in text and "robots" in text and "e-process" in bar
    assert run(*detect, "--quiet")[1] == ""


def test_plan_says_when_no_number_of_episodes_suffices() -> None:
    plan = answer(
        "plan", "ab", "--rate-a", "0.85", "--rate-b", "0.88", "--unit", "robot", "--icc", "0.05", "--runs", "0"
    )
    assert "no number of episodes is enough" in plan["sentences"][0] and plan["fixed"]["episodes"] is None


def test_a_design_too_large_to_simulate_still_has_its_formulas() -> None:
    for arguments, note in (
        (("ab", "--rate-a", "0.85", "--rate-b", "0.853"), "limited to 100,000"),
        (("detect", "--incumbent", "0.87", "--canary", "0.8699"), "too small a difference"),
    ):
        plan = answer("plan", *arguments, "--runs", "20")
        assert not plan["sequential"] and plan["fixed"]["episodes"] > 100_000
        assert note in plan["sentences"][1]


def test_rates_of_0_and_1_have_a_plan() -> None:
    plan = answer("plan", "ab", "--rate-a", "1", "--rate-b", "0", "--runs", "0")
    assert plan["fixed"]["episodes"] == 2


def test_interval_prints_three_kinds() -> None:
    assert run("interval", "435", "500")[0].count("%") >= 7
    document = answer("interval", "435", "500")
    low, high = zip(document["wilson"], document["clopper_pearson"], document["confidence_sequence"], strict=True)
    assert low[0] > low[1] > low[2] and high[0] < high[1] < high[2]
    assert answer("interval", "0", "0")["wilson"] == [0.0, 1.0]


def test_a_rollout_is_planned_before_anything_runs() -> None:
    plan = answer("plan", "rollout", "--robots", "20", "--holds", "one", "--runs", "3")
    assert plan["good_passes"][0] == 0.0 and "cannot be judged" in plan["warnings"][0]
    assert "without a person" in run("plan", "rollout", "--runs", "3", "--history", "870", "1000", "--quiet")[0]


def test_replay_prints_changes_and_finds_a_changed_number(log: Path) -> None:
    text, _ = run("replay", log)
    verdict = json.loads(log.read_text().splitlines()[-1])["verdict"]
    assert verdict["message"] in text and "every verdict is what its data say" in text
    assert text.count("CONTINUE") == 1 and run("replay", log, "--all")[0].count("CONTINUE") == 4
    assert answer("replay", log)["last"] == verdict
    log.write_text(log.read_text().replace('"success": false', '"success": true', 1))
    assert "REPLAY_DIFFERS" in run("replay", log, code=1)[1]
    assert answer("replay", log, code=1)["code"] == "REPLAY_DIFFERS"


def test_output_that_nobody_reads_to_its_end_is_no_error(log: Path) -> None:
    done = process("sh", "-c", f"{sys.executable} -m vla_evidence.cli replay {log} --json | head -c 1")
    assert done.stdout == "{" and done.stderr == ""


def test_replay_warns_of_a_torn_line(log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-5])
    assert "warning: " in run("replay", log)[1]


MANY = "9" * 400


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("plan", "ab", "--rate-a", "0.85", "--rate-b", "0.88", "--seed", "-1"), "INPUT_COUNT"),
        (("plan", "noninferiority", "--rate", "0.87", "--margin", "0.1", "--runs", "-5"), "INPUT_COUNT"),
        (("plan", "noninferiority", "--rate", "0.87", "--margin", "1e-200", "--runs", "0"), "INPUT_MARGIN"),
        (("plan", "ab", "--rate-a", "0.5", "--rate-b", "0.5000000000000001", "--runs", "0"), "INPUT_RATE"),
        (("plan", "ab", "--rate-a", "0.5", "--rate-b", "0.6", "--robots", MANY, "--runs", "0"), "INPUT_COUNT"),
        (("plan", "ab", "--rate-a", "0.5", "--rate-b", "0.6", "--within-days", "inf", "--runs", "0"), "INPUT_VALUE"),
        (("plan", "ab", "--rate-a", "0.5", "--rate-b", "0.6", "--per-day", "1e-320", "--runs", "0"), "INPUT_VALUE"),
        (("plan", "ab", "--rate-a", "0.85", "--rate-b", "0.88", "--power", "1e-300"), "INPUT_PROBABILITY"),
        (("plan", "noninferiority", "--rate", "0.87", "--margin", "0.1", "--share", "1e-300"), "INPUT_PROBABILITY"),
        (("simulate", "ab", "--robots", "1000000"), "INPUT_COUNT"),
        (("interval", "1", MANY), "INPUT_COUNT"),
        (("simulate", "canary", "--seed", "-1"), "INPUT_COUNT"),
        (("simulate", "canary", "--per-hour", "1e9"), "INPUT_VALUE"),
        (("plan", "rollout", "--history", "9", "5"), "INPUT_COUNT"),
        (("simulate", "ab", "--seed", "-1"), "INPUT_COUNT"),
        (("simulate", "ab", "--rate-a", "0.85", "--rate-b", "0.851", "--runs", "20"), "INPUT_COUNT"),
        (("plan", "ab", "--rate-a", "1.2", "--rate-b", "0.5"), "INPUT_RATE"),
        (("plan", "ab", "--rate-a", "nan", "--rate-b", "0.5"), "INPUT_RATE"),
        (("plan", "ab", "--rate-a", "0.5", "--rate-b", "0.5"), "INPUT_RATE"),
        (("plan", "detect", "--incumbent", "0.87", "--canary", "0.75", "--share", "0"), "INPUT_PROBABILITY"),
        (("plan", "noninferiority", "--rate", "0.87", "--margin", "0"), "INPUT_MARGIN"),
        (("plan", "ab", "--rate-a", "0.5", "--rate-b", "0.6", "--robots", "-3"), "INPUT_COUNT"),
        (("interval", "-1", "5"), "INPUT_COUNT"),
        (("interval", "6", "5"), "INPUT_COUNT"),
        (("interval", "1", "5", "--confidence", "95"), "INPUT_PROBABILITY"),
        (("replay", "no-such-file"), "LOG_UNREADABLE"),
        (("replay", "README.md"), "LOG_SYNTAX"),
        (("simulate", "canary", "--canary", "0.9"), "INPUT_RATE"),
        (("simulate", "ab", "--robots", "1"), "INPUT_COUNT"),
        (("simulate", "ab", "--runs", "1"), "INPUT_COUNT"),
    ],
)
def test_wrong_input_is_refused_by_its_code(arguments: tuple[str, ...], code: str) -> None:
    assert run(*arguments, code=1)[1].splitlines()[-1].startswith(f"{code}: ")
    assert answer(*arguments, code=1)["code"] == code


@pytest.mark.parametrize(
    "arguments", [(), ("plan",), ("plan", "ab", "--rate-a", "many"), ("interval", "1"), ("oracle",)]
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(arguments)
    assert e.value.code == 2 and "usage: vla-evidence" in capsys.readouterr().err


def test_missing_analysis_packages_are_named_with_the_line_that_installs_them(tmp_path: Path) -> None:
    """As on a robot: a folder before all others makes matplotlib and tqdm unimportable."""
    for name in ("matplotlib", "tqdm"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name='{name}')\n")
    for arguments, name in (
        (("plan", "detect", "--incumbent", "0.87", "--canary", "0.75"), "tqdm"),
        (
            ("simulate", "ab", "--runs", "2", "--robots", "4", "--rate-a", "0.2", "--rate-b", "0.9", "--quiet"),
            "matplotlib",
        ),
    ):
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from vla_evidence.cli import main; "
        code += f"sys.exit(main({list(arguments)!r}))"
        done = process(sys.executable, "-c", code)
        assert done.returncode == 1
        assert done.stderr.startswith(f"ANALYSIS_MISSING: {name}: ") and "pip install" in done.stderr
