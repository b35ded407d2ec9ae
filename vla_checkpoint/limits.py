# SPDX-License-Identifier: Apache-2.0
"""How large the parts of a checkpoint may be before anything is allocated for them. What exceeds a bound is refused.

JSON is parsed in one go, in the thread that also looks after a running trial: its bounds keep that short. They are computed from
a 7B policy, about 1,000 tensors with names of about 100 characters in three shards: 0.17 MB of manifest, 0.14 MB of shard index,
0.18 MB of safetensors headers with 8,000 values. The manifest's bound, 6 times that, is the narrowest: weights whose digests
fit into it fit into the others.
"""

from __future__ import annotations

HEADER_BYTES = 2_000_000
"""Length of a safetensors header [bytes]."""
TENSORS = 20_000
"""Tensors in one file."""
DIMENSIONS = 16
"""Dimensions of one tensor."""
NAME_CHARS = 1024
"""Length of a tensor's or feature's name [characters]."""
METADATA_ENTRIES = 10_000
"""Entries of a safetensors file's ``__metadata__``."""
MANIFEST_BYTES = 1_000_000
"""Length of ``manifest.json`` [bytes]."""
JSON_BYTES = 1_000_000
"""Length of any other JSON file that is read (configuration, statistics, shard index) [bytes]."""
JSON_DEPTH = 32
"""Nesting of lists and objects in a JSON file."""
JSON_VALUES = 100_000
"""Brackets, braces and commas in a JSON file, headers included: bounds memory and time that parsing takes."""
FILES = 4096
"""Files of a bundle."""
PATH_CHARS = 255
"""Length of a file's path inside the bundle [characters]."""
PATH_DEPTH = 8
"""Segments of a file's path inside the bundle."""
FILE_BYTES = 1 << 44
"""Size of one file [bytes]: 16 TiB."""
CHANNELS = 256
"""Action channels."""
GOLDEN_BYTES = 256_000_000
"""Size of ``golden.safetensors``, which is read into memory whole [bytes]."""
REQUIREMENTS = 16
"""Distributions that a bundle may ask of the interpreter that runs it."""
