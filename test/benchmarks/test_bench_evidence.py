# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the judges: every rule on the same episodes, ours within their promise, the others as is known of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import evidence


def test_ours_errs_as_promised_and_looking_again_and_again_breaks_the_promise_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evidence.main(["--runs", "400", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "ours" in out and "z test" in out and "±" in out
    tables = json.loads((tmp_path / "evidence.json").read_text())["tables"]
    assert len(tables) == 3
    for table in tables:
        for rule, found in table["rules"].items():
            if rule.startswith("ours"):
                (error, standard_error), (power, _) = found["equal"], found["different"]
                assert error <= 0.05 + 3 * standard_error and power > 0.6, rule
    canaries = {rule: found["equal"][0] for rule, found in tables[0]["rules"].items()}
    assert canaries["z test, every 10 canary episodes"] > 0.15 > canaries["z test, once at the end"]
    assert canaries["new mean >= old mean - 2 %, every 10"] > 0.3
