# SPDX-License-Identifier: Apache-2.0
"""Why a checkpoint was refused: ``CheckpointError`` and a subclass a part of it. docs/errors.md explains every code."""

from __future__ import annotations

import os

from vla_ros.plain import printable

_MAX_CHARS = 1000  # of a hostile file's names


class CheckpointError(Exception):
    """A checkpoint was refused.

    Attributes:
        code: stable SCREAMING_SNAKE_CASE name of the reason (docs/errors.md).
        path: the file (or folder) at fault, on one printable line.
        reason: what is wrong with it, for people; one line.
    """

    def __init__(self, code: str, path: str | os.PathLike[str], reason: str) -> None:
        self.code = code
        self.path = _shown(path)
        self.reason = _shown(reason)
        super().__init__(f"{code}: {self.path}: {self.reason}")

    def moved(self, old: str | os.PathLike[str], new: str | os.PathLike[str]) -> CheckpointError:
        """Return the same refusal with ``new`` for ``old`` in its path: what was checked in a temporary folder lies elsewhere."""
        before, after = _shown(old), os.fspath(new)
        if self.path != before and not self.path.startswith(before + "/"):
            return self
        return type(self)(self.code, after + self.path.removeprefix(before), self.reason)


def _shown(text: str | os.PathLike[str]) -> str:
    text = os.fspath(text)
    return printable(text[:_MAX_CHARS]) + "…" * (len(text) > _MAX_CHARS)


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


class DeltaError(CheckpointError):
    """A tensor delta is malformed, or does not make what it promises of what it is given."""


class ImportFolderError(CheckpointError):
    """A foreign checkpoint folder cannot be turned into a bundle."""


class CancelledCheckError(CheckpointError):
    """CANCELLED: the caller stopped a long check; the checkpoint may be good or bad."""
