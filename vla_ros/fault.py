# SPDX-License-Identifier: Apache-2.0
"""Whose fault a failure is: ``fault`` in the replies of PrepareModel and SwapModel. No ROS here."""

from __future__ import annotations

from enum import IntEnum


class Fault(IntEnum):
    """Names and numbers as in ``srv/SwapModel.srv`` and ``action/PrepareModel.action``, which say what each means."""

    NONE = 0
    BUNDLE = 1
    ROBOT = 2
    BUSY = 3
    PERSON = 4
