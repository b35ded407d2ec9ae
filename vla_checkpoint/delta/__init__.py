# SPDX-License-Identifier: Apache-2.0
"""Tensor deltas: a safetensors file as what changed against files that the receiver has. docs/delta_format.md."""

from __future__ import annotations

from vla_checkpoint.delta.apply import apply_delta, apply_to_file
from vla_checkpoint.delta.format import Codec, Delta, FileRef, read_delta
from vla_checkpoint.delta.make import make_delta

__all__ = ["Codec", "Delta", "FileRef", "apply_delta", "apply_to_file", "make_delta", "read_delta"]
