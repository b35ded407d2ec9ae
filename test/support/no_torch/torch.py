# SPDX-License-Identifier: Apache-2.0
"""Stands before torch on a path, for processes that are to begin at once: it is not there, they are told."""

raise ImportError("left out of this test")
