# SPDX-License-Identifier: Apache-2.0
"""The fleet benchmark, small: every figure is there, and what the robots did the server has stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.fleet import __main__ as bench
from benchmarks.fleet import document, origin
from benchmarks.update.finetunes import Size

pytestmark = pytest.mark.long


def test_a_fleet_of_twenty_is_measured_beside_an_echo_and_polling(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "pictures").mkdir(parents=True)
    (docs / "fleet.md").write_text(f"before\n{document.BEGIN}\nold\n{document.END}\nafter\n")
    bench.main(["--out", str(tmp_path), "--quick", "--sizes", "20", "--docs", str(docs)])
    fleet, polling, chaos = json.loads((tmp_path / "fleet.json").read_text())["tables"]
    rows = {row["way"]: row for row in fleet["rows"]}
    assert set(fleet["units"]) <= rows["vla-fleet serve"].keys()
    for floor in ("plain echo", "plain echo, no compression"):
        assert {"connect_per_s", "kb", "update_s"} <= rows[floor].keys()
    (faults,) = chaos["rows"]
    assert faults["orders_done"]["min"] == 6 * 20 and faults["dropped"]["min"] == 8 and faults["outcomes"]["min"] > 0
    assert all(row["per_s"]["min"] > 0 for row in polling["rows"]) and len(polling["rows"]) == 2
    page = (docs / "fleet.md").read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "old" not in page
    assert (
        "| vla-fleet serve | 20 |" in page
        and "A million robots" in page
        and (docs / "pictures/fleet_curves.png").stat().st_size
    )


def test_a_mirror_and_deltas_spare_the_origin_bytes_and_a_cut_line_costs_no_file() -> None:
    table = origin.measure(12, Size(dim=192, layers=3, steps=3, share=0.01), print)
    sent = {row.way: row.values["mb"][0] for row in table.rows}
    assert sent["whole, no mirror"] > 4 * sent["whole, a mirror"] > 4 * sent["deltas, a mirror"]
    assert sent["whole, no mirror"] > sent["deltas, no mirror"]
