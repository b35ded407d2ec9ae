# SPDX-License-Identifier: Apache-2.0
"""How large the parts of a checkpoint may be before anything is allocated for them.

JSON is parsed in one go, in the thread that also looks after a running trial: its bounds keep that short. They are computed from
a 7B policy, about 1,000 tensors with names of about 100 characters in three shards: 0.17 MB of manifest, 0.14 MB of shard index,
0.18 MB of safetensors headers with 8,000 values. The manifest's bound, 6 times that, is the narrowest: weights whose digests
fit into it fit into the others.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Upper bounds for input that nobody has vouched for yet. A checkpoint that exceeds one is refused."""

    header_bytes: int = 2_000_000
    """Length of a safetensors header [bytes]."""
    tensors: int = 20_000
    """Tensors in one file."""
    dimensions: int = 16
    """Dimensions of one tensor."""
    name_chars: int = 1024
    """Length of a tensor's or feature's name [characters]."""
    metadata_entries: int = 10_000
    """Entries of a safetensors file's ``__metadata__``."""
    manifest_bytes: int = 1_000_000
    """Length of ``manifest.json`` [bytes]."""
    json_bytes: int = 1_000_000
    """Length of any other JSON file that is read (configuration, statistics, shard index) [bytes]."""
    json_depth: int = 32
    """Nesting of lists and objects in a JSON file."""
    json_values: int = 100_000
    """Brackets, braces and commas in a JSON file, headers included: bounds memory and time that parsing takes."""
    files: int = 4096
    """Files of a bundle."""
    path_chars: int = 255
    """Length of a file's path inside the bundle [characters]."""
    path_depth: int = 8
    """Segments of a file's path inside the bundle."""
    file_bytes: int = 1 << 44
    """Size of one file [bytes]: 16 TiB."""
    channels: int = 256
    """Action channels."""
    golden_bytes: int = 256_000_000
    """Size of ``golden.safetensors``, which is read into memory whole [bytes]."""


DEFAULT_LIMITS = Limits()
