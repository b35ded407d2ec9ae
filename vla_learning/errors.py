# SPDX-License-Identifier: Apache-2.0
"""Errors of episodes and data sets. Every one carries a stable ``code`` (docs/errors.md) and one line for people.

::

    LearningError
    ├── EpisodeError   a file is no whole episode: it is refused, and left as it is
    └── DataSetError   a data set cannot be built or read
"""

from __future__ import annotations

import os


class LearningError(Exception):
    """Root of the errors of episodes and data sets.

    Attributes:
        code: stable name of the reason.
        where: the file, folder, episode or option at fault.
        reason: what is wrong and what to do.
    """

    def __init__(self, code: str, where: str | os.PathLike[str], reason: str) -> None:
        self.code, self.where, self.reason = code, os.fspath(where), reason
        super().__init__(f"{code}: {self.where}: {reason}")


class EpisodeError(LearningError):
    """``code`` is EPISODE_UNREADABLE, EPISODE_TRUNCATED, EPISODE_FORMAT, EPISODE_LIMIT or EPISODE_NOT_WRITTEN."""


class DataSetError(LearningError):
    """A data set cannot be built or read."""
