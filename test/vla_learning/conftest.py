# SPDX-License-Identifier: Apache-2.0
"""Training runs in the process of the test, on one thread: more take five times as long for so small a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.tiny_vla_bundles import make


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained ``tiny_vla`` bundle: two joints, a picture of 32×32, chunks of 20 actions at 20 Hz."""
    folder = tmp_path_factory.mktemp("models") / "tiny" / "1.0.0"
    folder.parent.mkdir()
    make(folder, 0.0)
    return folder
