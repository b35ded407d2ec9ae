# SPDX-License-Identifier: Apache-2.0
"""Errors of the simulator.

* :class:`SimError`
    * :class:`CommandRefusedError` ``COMMAND_REFUSED``: a joint command that the arm does not take
    * :class:`LayoutError` ``LAYOUT_IMPOSSIBLE``: no room for the blocks
    * :class:`RecipeError` ``RECIPE_FAILED``: a demo bundle could not be made
"""

from __future__ import annotations


class SimError(Exception):
    """Root of the simulator's errors; ``code`` is stable, the text is for people."""

    code = "SIM_ERROR"


class CommandRefusedError(SimError):
    """A joint command has the wrong length or is not finite; the arm keeps its last command."""

    code = "COMMAND_REFUSED"


class LayoutError(SimError):
    """The blocks could not be placed with the clearances asked for."""

    code = "LAYOUT_IMPOSSIBLE"


class RecipeError(SimError):
    """A bundle could not be derived from its base."""

    code = "RECIPE_FAILED"
