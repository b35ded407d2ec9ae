# SPDX-License-Identifier: Apache-2.0
"""Why a checkpoint was refused: one small tree, one stable code for each reason.

::

    CheckpointError                 something is wrong with a checkpoint (catch this one)
    ├── FileError                   FILE_MISSING FILE_UNREADABLE FILE_NOT_REGULAR FILE_TOO_LARGE FILE_NOT_WRITTEN
    ├── JsonError                   JSON_SYNTAX JSON_DUPLICATE_KEY JSON_LIMIT
    ├── HeaderError                 HEADER_FILE_SIZE HEADER_LIMIT HEADER_FORMAT
    ├── ValueCheckError             VALUES_NOT_FINITE
    ├── ShardError                  SHARD_INDEX SHARD_MISSING SHARD_UNLISTED
    ├── ConfigError                 CONFIG_FIELD_MISSING CONFIG_FIELD_INVALID CONFIG_MISMATCH HISTORY_UNSUPPORTED
    ├── StatsError                  STATS_MISSING STATS_FORMAT STATS_DIMENSION STATS_NOT_FINITE STATS_STD STATS_ORDER
    │                               STATS_CONFLICT STATS_STATE_FILE STATS_PROCESSOR_MISMATCH
    ├── GoldenError                 GOLDEN_FORMAT GOLDEN_SHAPE
    ├── AdapterError                ADAPTER_CONFIG
    ├── ManifestError               MANIFEST_FIELD MANIFEST_SCHEMA MANIFEST_NOT_CANONICAL
    │                               MANIFEST_PATH MANIFEST_LIMIT
    ├── VersionError                VERSION_INVALID VERSION_NOT_NEWER VERSION_BUMP_TOO_SMALL
    ├── DigestError                 DIGEST_BUNDLE DIGEST_FILE DIGEST_TENSOR
    ├── BundleError                 BUNDLE_NOT_A_FOLDER BUNDLE_FILE_MISSING BUNDLE_FILE_EXTRA BUNDLE_FILE_SIZE
    │                               BUNDLE_SYMLINK BUNDLE_FILE_EXTRA BUNDLE_FORBIDDEN_FILE
    │                               BUNDLE_WEIGHTS BUNDLE_TENSORS
    ├── ImportFolderError           IMPORT_SOURCE IMPORT_DESTINATION
    └── CancelledCheckError         CANCELLED (the caller asked for it; nothing is said about the checkpoint)
"""

from __future__ import annotations

import os

_MAX_CHARS = 1000


def printable(text: str) -> str:
    """Escape what would break a log line, a terminal or a ROS string: names in a hostile file end up in messages."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_MAX_CHARS])
    return escaped + "…" * (len(text) > _MAX_CHARS)


class CheckpointError(Exception):
    """A checkpoint was refused.

    Attributes:
        code: stable SCREAMING_SNAKE_CASE name of the reason (see the module's docstring).
        path: the file (or folder) at fault, unprintable characters escaped.
        reason: what is wrong with it, for people; one line.
    """

    def __init__(self, code: str, path: str | os.PathLike[str], reason: str) -> None:
        self.code = code
        self.path = printable(os.fspath(path))
        self.reason = printable(reason)
        super().__init__(f"{code}: {self.path}: {self.reason}")

    def moved(self, old: str | os.PathLike[str], new: str | os.PathLike[str]) -> CheckpointError:
        """Return the same refusal with ``new`` for ``old`` in its path: what was checked in a temporary folder lies elsewhere."""
        before, after = printable(os.fspath(old)), os.fspath(new)
        if self.path != before and not self.path.startswith(before + "/"):
            return self
        return type(self)(self.code, after + self.path.removeprefix(before), self.reason)


class FileError(CheckpointError):
    """A file cannot be read or written, or is not a plain file."""


class JsonError(CheckpointError):
    """A file is not the strict JSON it has to be."""


class HeaderError(CheckpointError):
    """A safetensors header is malformed or does not describe its file exactly."""


class ValueCheckError(CheckpointError):
    """Weights hold NaN or infinity."""


class ShardError(CheckpointError):
    """Shards and their index disagree."""


class ConfigError(CheckpointError):
    """``config.json`` lacks something, or contradicts the manifest."""


class StatsError(CheckpointError):
    """Normalisation statistics are missing, or cannot be used."""


class GoldenError(CheckpointError):
    """``golden.safetensors`` does not hold usable observations and chunks."""


class AdapterError(CheckpointError):
    """An adapter's files are not a usable PEFT layout."""


class ManifestError(CheckpointError):
    """``manifest.json`` breaks the schema."""


class VersionError(CheckpointError):
    """A version is not Semantic Versioning 2.0.0, or its step is too small."""


class DigestError(CheckpointError):
    """Bytes are not those that were promised."""


class BundleError(CheckpointError):
    """The folder does not hold what the manifest says, or holds what it must not."""


class ImportFolderError(CheckpointError):
    """A foreign checkpoint folder cannot be turned into a bundle."""


class CancelledCheckError(CheckpointError):
    """The caller cancelled a long check."""
