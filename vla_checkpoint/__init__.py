# SPDX-License-Identifier: Apache-2.0
"""What a policy checkpoint is: bundle, manifest, digests, and every reason to refuse one. No ROS, no torch.

``open_bundle`` parses and cross-checks, ``verify_bundle`` also hashes; both raise a :class:`CheckpointError` with a stable code.
"""

from __future__ import annotations

from vla_checkpoint.build import build_manifest
from vla_checkpoint.bump import check_bump, least_bump
from vla_checkpoint.bundle import Bundle, open_bundle, verify_bundle
from vla_checkpoint.config import Feature, PolicyConfig, load_config
from vla_checkpoint.digest import sha256_bytes, sha256_file
from vla_checkpoint.errors import (
    AdapterError,
    BundleError,
    CancelledCheckError,
    CheckpointError,
    ConfigError,
    DigestError,
    FileError,
    GoldenError,
    HeaderError,
    ImportFolderError,
    JsonError,
    ManifestError,
    ShardError,
    StatsError,
    ValueCheckError,
    VersionError,
)
from vla_checkpoint.golden import Golden, read_golden, write_golden
from vla_checkpoint.header import DTYPE_BITS, Header, TensorInfo, read_header
from vla_checkpoint.importer import ImportReport, import_folder
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
from vla_checkpoint.stats import Stats, load_stats
from vla_checkpoint.version import bump_between, compare_versions, parse_version

__all__ = [
    "DTYPE_BITS",
    "MANIFEST_NAME",
    "ActionSpec",
    "AdapterError",
    "BaseRef",
    "Bundle",
    "BundleError",
    "CancelledCheckError",
    "Channel",
    "CheckpointError",
    "ConfigError",
    "DigestError",
    "Feature",
    "FileEntry",
    "FileError",
    "Golden",
    "GoldenError",
    "Header",
    "HeaderError",
    "ImportFolderError",
    "ImportReport",
    "JsonError",
    "Manifest",
    "ManifestError",
    "PolicyConfig",
    "ShardError",
    "Stats",
    "StatsError",
    "TensorInfo",
    "ValueCheckError",
    "VersionError",
    "build_manifest",
    "bump_between",
    "check_bump",
    "compare_versions",
    "import_folder",
    "least_bump",
    "load_config",
    "load_manifest",
    "load_stats",
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
