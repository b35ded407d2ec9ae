# SPDX-License-Identifier: Apache-2.0
"""Errors of the simulator; ``code`` is stable, the text is for people."""

from __future__ import annotations


class CommandRefusedError(Exception):
    """A joint command has the wrong length or is not finite; the arm keeps its last command."""

    code = "COMMAND_REFUSED"


class SimSettingError(ValueError):
    """A parameter of ``sim_robot`` names what is not there."""

    code = "PARAMETER_INVALID"


class RecipeError(Exception):
    """A bundle could not be derived from its base."""

    code = "RECIPE_FAILED"
