# SPDX-License-Identifier: Apache-2.0
"""The report is one line a finding, its exit status follows from the worst, and the documentation is made from the catalogue."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vla_doctor.catalog import RULES, page
from vla_doctor.findings import exit_status, ok, problem, report, report_json
from vla_doctor.settings import DoctorSettings, parse_arguments

TOP = Path(__file__).resolve().parents[2]


def test_a_failure_strikes_the_eye_and_says_what_to_do() -> None:
    findings = [ok("contract", "fine"), problem("POLICY_ERROR", "node", "two\nlines")]
    lines = report(findings).splitlines()
    assert lines[0].split() == ["ok", "contract", "fine"]
    assert lines[1].startswith("FAIL  node      POLICY_ERROR: two lines  -> read policy_node's log")
    assert lines[2] == "doctor: 1 FAIL, 0 warn, 1 ok: something does not work"


def test_only_a_failure_makes_the_exit_status_one() -> None:
    warned = [ok("a", "b"), problem("SOURCES_EMPTY", "node", "no source")]
    assert exit_status([]) == exit_status(warned) == 0
    assert exit_status([*warned, problem("POLICY_ERROR", "node", "ended")]) == 1
    document = json.loads(report_json(warned))
    assert document["level"] == "warn" and document["findings"][1]["code"] == "SOURCES_EMPTY"


def test_every_rule_is_used_by_a_check_and_every_code_has_a_rule() -> None:
    source = "".join(p.read_text() for p in (TOP / "vla_doctor").rglob("*.py") if p.name != "catalog.py")
    used = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', source)) & set(RULES)
    assert used == set(RULES)
    assert set(re.findall(r'problem\(\s*"([A-Z_]+)"', source)) <= set(RULES)


def test_the_documentation_is_what_the_catalogue_says() -> None:
    assert (TOP / "docs/doctor.md").read_text() == page(), "python -m vla_doctor.catalog > docs/doctor.md"
    assert "{" not in re.sub(r"`[^`]*`", "", page()), "a name in braces is left"


def test_the_command_line_gives_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    values, namespace = parse_arguments(["--contract", "c.yaml", "--seconds", "5", "--json", "--namespace", "arm"])
    assert values == {"contract": "c.yaml", "seconds": 5.0, "json": True} and namespace == "arm"
    DoctorSettings(**values)
    for wrong in (["--seconds", "0"], ["--seconds", "soon"], ["--seconds", "nan"], ["--nonsense"], ["stray"]):
        with pytest.raises(SystemExit) as e:
            parse_arguments(wrong)
        assert e.value.code == 2
    assert "--seconds" in capsys.readouterr().err
