# SPDX-License-Identifier: Apache-2.0
"""config/vla_ota.yaml says what the nodes do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


def test_the_parameters_file_has_every_parameter_with_its_default() -> None:
    made = subprocess.run(
        [sys.executable, str(TOP / "scripts" / "params_yaml.py")],
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    assert (TOP / "config" / "vla_ota.yaml").read_text() == made.stdout, (
        "run scripts/params_yaml.py > config/vla_ota.yaml"
    )
