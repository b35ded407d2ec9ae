# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.control_rig import Rig


@pytest.fixture
def make_rig() -> Iterator[Any]:
    """Make control loops under a clock that is set by hand; see ``Rig``."""
    rigs: list[Rig] = []

    def build(**changes: Any) -> Rig:
        rigs.append(Rig(**changes))
        return rigs[-1]

    yield build
    for rig in rigs:
        rig.close()
