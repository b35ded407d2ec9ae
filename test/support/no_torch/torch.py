# SPDX-License-Identifier: Apache-2.0
"""Hides torch, first on a path: processes that need no torch start at once without its import."""

raise ImportError("left out of this test")
