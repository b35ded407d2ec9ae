# SPDX-License-Identifier: Apache-2.0
"""A refusal is one line that nothing in a hostile file can break; every kind of it is public."""

from __future__ import annotations

from pathlib import Path

from vla_checkpoint import errors


def test_hostile_names_cannot_break_a_log_line() -> None:
    error = errors.BundleError("BUNDLE_FILE_EXTRA", "a\x1b[2J\n\udcff", "x" * 5000 + "\n")
    assert str(error).isprintable()
    assert str(error).encode("utf-8")
    assert len(str(error)) < 2000


def test_an_error_reads_as_one_line() -> None:
    error = errors.StatsError("STATS_STD", Path("b") / "stats.json", "action.std must be above 0")
    assert str(error) == "STATS_STD: b/stats.json: action.std must be above 0"
    assert (error.code, error.path, error.reason) == ("STATS_STD", "b/stats.json", "action.std must be above 0")
