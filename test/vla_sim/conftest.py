# SPDX-License-Identifier: Apache-2.0
"""Policies of these tests run in the process of the test, on one thread: more take five times as long for so small a network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
