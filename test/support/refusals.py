# SPDX-License-Identifier: Apache-2.0
"""Errors that carry a code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(code: str) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """The block must raise an error with this code; the value says what was raised."""
    with pytest.raises(Exception) as caught:
        yield caught
    assert getattr(caught.value, "code", None) == code, repr(caught.value)
