# SPDX-License-Identifier: Apache-2.0
"""Processes that may outlive the test that started them, because a fixture of the whole file ends them (see ``conftest.py``)."""

from __future__ import annotations

KEPT: set[int] = set()
"""Process ids."""
