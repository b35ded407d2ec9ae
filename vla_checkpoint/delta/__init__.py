# SPDX-License-Identifier: Apache-2.0
"""Tensor deltas: a safetensors file as what changed against files that the receiver has. docs/delta_format.md."""

from __future__ import annotations

from vla_checkpoint.delta.apply import apply_delta, apply_to_file
from vla_checkpoint.delta.format import Codec, Delta, FileRef, read_delta
from vla_checkpoint.delta.make import make_delta
from vla_checkpoint.delta.offers import MIN_BYTES, OFFERS_NAME, Offer, offer_deltas, parse_offers

__all__ = [
    "MIN_BYTES",
    "OFFERS_NAME",
    "Codec",
    "Delta",
    "FileRef",
    "Offer",
    "apply_delta",
    "apply_to_file",
    "make_delta",
    "offer_deltas",
    "parse_offers",
    "read_delta",
]
