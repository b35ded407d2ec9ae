# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the judges: every rule on the same episodes, ours within their promise, the others as is known of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import evidence


@pytest.mark.parametrize("draw", [evidence.canaries, evidence.pairs, evidence.robots])
def test_ours_errs_as_promised_and_finds_what_is_there(draw: evidence.Draw) -> None:
    runs = 300
    same, different = (
        draw(np.random.default_rng(i), runs, rate) for i, rate in enumerate((evidence.GOOD, evidence.BAD))
    )
    assert list(same) == list(different) and all(times.shape == (runs,) for times in same.values())
    for rule, times in same.items():
        if rule.startswith("ours"):
            assert np.isfinite(times).mean() <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5, rule
            assert np.isfinite(different[rule]).mean() > 0.6, rule


def test_looking_again_and_again_breaks_the_promise_of_the_others() -> None:
    same = evidence.canaries(np.random.default_rng(2), 300, evidence.GOOD)
    shares = {rule: float(np.isfinite(times).mean()) for rule, times in same.items()}
    assert shares["z test, every 10 canary episodes"] > 0.15 > shares["z test, once at the end"]
    assert shares["new mean >= old mean - 2 %, every 10"] > 0.3


def test_it_prints_tables_and_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evidence.main(["--runs", "20", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "ours" in out and "z test" in out and "±" in out
    document = json.loads((tmp_path / "evidence.json").read_text())
    assert len(document["tables"]) == 3 and document["settings"]["runs"] == 20
