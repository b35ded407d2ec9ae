# SPDX-License-Identifier: Apache-2.0
"""What a robot or a server's judge imports is light: nothing for analysis at a desk comes with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
HEAVY = ("statsmodels", "pandas", "matplotlib", "tqdm", "scipy.stats", "scipy.optimize", "fastapi", "sqlalchemy")


@pytest.mark.parametrize("module", ["vla_evidence", "vla_ota_manager.trial", "vla_evidence.canary.judge"])
def test_judges_import_no_package_for_analysis_or_servers(module: str) -> None:
    check = f"import sys, {module}; print(sorted(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=TOP, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
