# SPDX-License-Identifier: Apache-2.0
"""Why no contract could be drafted."""

from __future__ import annotations

from vla_ros.plain import printable


class DraftError(Exception):
    """Nothing was written. ``code`` is in docs/errors.md."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(printable(text))
        self.code = code
