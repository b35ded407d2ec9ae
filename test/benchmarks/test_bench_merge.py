# SPDX-License-Identifier: Apache-2.0
"""The merge benchmark, small and in this process: what it measures is exact where it says so, and stands bad clients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import merge


@pytest.mark.filterwarnings("ignore")  # of transformers, about what it was built with
def test_merges_are_exact_and_robust_rules_stand_two_bad_clients_of_ten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "in_process", merge.measure)
    assert merge.main(["--out", str(tmp_path), "--size", "192", "--runs", "1", "--repeats", "1", "--draws", "3"]) == 0
    exact, small, bad = json.loads((tmp_path / "merge.json").read_text())["tables"]
    for row in exact["rows"]:
        if row["way"] == merge.OURS_EXACT:
            assert row["error"]["max"] <= 1e-12 and row["error32"]["max"] <= 1e-6
        if row["way"] == merge.AVERAGED:
            assert row["error"]["min"] > 0.5
    errors = {row["way"]: row["error"]["median"] for row in small["rows"]}
    assert errors[merge.OURS_SMALL] == pytest.approx(errors[merge.PEFT_SVD], rel=1e-4)  # the best there is of that rank
    far = {(row["way"], row["condition"]): row["alike"] for row in bad["rows"]}
    assert far["mean", "ten times the opposite"]["min"] > 2.0
    for condition in merge.ATTACKS:
        assert far["multi-Krum, f = 2", condition]["max"] < 1e-6
        assert far["geometric median", condition]["max"] < 0.3
    assert _ways(exact) == list(merge.EXACT_WAYS) and _ways(small) == list(merge.SMALL_WAYS)


def _ways(table: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["way"] for row in table["rows"]))
