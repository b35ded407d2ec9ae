# SPDX-License-Identifier: Apache-2.0
"""What a policy checkpoint is: bundle, manifest, digests, and every reason to refuse one. No ROS, no torch.

``open_bundle`` parses and cross-checks, ``verify_bundle`` also hashes; both raise a :class:`CheckpointError` with a stable code.
"""

from __future__ import annotations

from vla_checkpoint.build import build_manifest
from vla_checkpoint.bump import check_bump, least_bump
from vla_checkpoint.bundle import Bundle, open_bundle, verify_bundle
from vla_checkpoint.config import load_config
from vla_checkpoint.digest import sha256_bytes, sha256_file
from vla_checkpoint.errors import CancelledCheckError, CheckpointError
from vla_checkpoint.golden import Golden, read_golden, write_golden
from vla_checkpoint.header import read_header
from vla_checkpoint.importing.folder import import_folder
from vla_checkpoint.manifest import (
    ActionSpec,
    BaseRef,
    Channel,
    FileEntry,
    Manifest,
    load_manifest,
    write_manifest,
)
from vla_checkpoint.paths import MANIFEST_NAME
from vla_checkpoint.version import parse_version

__all__ = [
    "MANIFEST_NAME",
    "ActionSpec",
    "BaseRef",
    "Bundle",
    "CancelledCheckError",
    "Channel",
    "CheckpointError",
    "FileEntry",
    "Golden",
    "Manifest",
    "build_manifest",
    "check_bump",
    "import_folder",
    "least_bump",
    "load_config",
    "load_manifest",
    "open_bundle",
    "parse_version",
    "read_golden",
    "read_header",
    "sha256_bytes",
    "sha256_file",
    "verify_bundle",
    "write_golden",
    "write_manifest",
]
