# SPDX-License-Identifier: Apache-2.0
"""A merged adapter on disk: PEFT files, the bundle that robots install, and the certificate that says what it is the sum of.

The merge's scale is in its factors, so ``lora_alpha = r`` and ``use_rslora`` is off: every reader of PEFT's layout comes to a
scale of 1. A module whose rank is another one than the largest has its own in ``rank_pattern`` and ``alpha_pattern``.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.numpy

from vla_checkpoint import BaseRef, Bundle, Manifest, build_manifest, open_bundle, parse_version, write_manifest
from vla_checkpoint.adapter import ADAPTER_CONFIG_NAME
from vla_checkpoint.config import CONFIG_NAME
from vla_checkpoint.errors import AdapterError, CheckpointError, FileError
from vla_checkpoint.files import write_atomically
from vla_checkpoint.processors import PROCESSOR_NAMES
from vla_checkpoint.shards import ADAPTER_WEIGHTS_NAME
from vla_checkpoint.stats import STATS_NAME
from vla_checkpoint.strict_json import load_object
from vla_learning.adapters.lowrank import difference
from vla_learning.adapters.merging import Merge
from vla_learning.adapters.reading import Client, open_client

CERTIFICATE_NAME = "merge_certificate.json"
CERTIFICATE_SCHEMA = 1


def write_merge(
    merge: Merge, base: Bundle, out: Path, version: str = "", replay: Callable[[Path, Bundle], None] | None = None
) -> tuple[Manifest, dict[str, Any]]:
    """Write the bundle ``out``, which appears when it is complete, or not at all; return its manifest and its certificate.

    Inputs, outputs and statistics are the clients', or the base's if all clients are plain PEFT folders.

    Args:
        merge: what to write.
        base: what it acts on.
        out: folder to create.
        version: Semantic Versioning; empty: the least one above the base's and the clients'.
        replay: writes golden observations into the folder of the bundle; that needs the policy to run.

    Raises:
        AdapterError: ``MERGE_DESTINATION``.
        CheckpointError: a file cannot be written, or the bundle would not be valid.
    """
    if out.exists():
        raise AdapterError("MERGE_DESTINATION", out, "exists already; name a new folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as e:
        raise FileError("FILE_NOT_WRITTEN", out, e.strerror or str(e)) from e
    try:
        found = _write_files(merge, base, aside)
        manifest = _manifest(merge, base, aside, version)
        write_manifest(aside, manifest)
        if replay is not None:
            replay(aside, open_bundle(aside))
            manifest = _manifest(merge, base, aside, version)
            write_manifest(aside, manifest)
        open_bundle(aside)
        aside.chmod(0o755)  # mkdtemp's is private
        aside.rename(out)
    except CheckpointError as e:
        raise e.moved(aside, out) from e
    except OSError as e:
        raise FileError("FILE_NOT_WRITTEN", out, e.strerror or str(e)) from e
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest, found


def _manifest(merge: Merge, base: Bundle, folder: Path, version: str) -> Manifest:
    return build_manifest(
        folder,
        name=base.manifest.name,
        version=version or _next_version(merge, base),
        policy_type=base.manifest.policy_type,
        robot_type=base.manifest.robot_type,
        channels=base.manifest.action.channels,
        rate_hz=base.manifest.action.rate_hz,
        kind="adapter",
        base=BaseRef(base.manifest.name, base.manifest.version, base.digest),
        requires=base.manifest.requires,
        lineage={
            "method": "merge",
            "merge": merge.settings.method,
            "merged_from": [_digest(standing.client) or standing.client.sha256 for standing in merge.clients],
        },
    )


def peft_config(merge: Merge) -> dict[str, Any]:
    """Return ``adapter_config.json`` of a merge."""
    tasks = {standing.client.task_type for standing in merge.clients}
    ranks = {f"^{re.escape(m.name)}": len(m.a) for m in merge.modules if len(m.a) != merge.rank}
    return {
        "peft_type": "LORA",
        "task_type": tasks.pop() if len(tasks) == 1 else None,
        "base_model_name_or_path": None,
        "r": merge.rank,
        "lora_alpha": merge.rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": [module.name for module in merge.modules],
        "modules_to_save": None,
        "fan_in_fan_out": merge.transposed,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "lora_bias": False,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _certificate(merge: Merge, base: Bundle, written: Client) -> dict[str, Any]:
    """Return what a merge is the sum of, and how exactly: measured on the files, read as a robot reads them.

    The same clients and settings give the same bytes, in whatever order the clients were named.
    """
    settings, errors = merge.settings, {}
    for module in merge.modules:
        found = written.product(module.name)
        assert found is not None  # it was written
        errors[module.name] = difference(found, merge.weighted_sum(module.name))
    norm = math.hypot(*(module.norm for module in merge.modules))
    return {
        "schema": CERTIFICATE_SCHEMA,
        "method": settings.method,
        "rank": settings.rank,
        "clip": settings.clip,
        "attackers": settings.attackers,
        "base": {"name": base.manifest.name, "version": base.manifest.version, "digest": base.digest},
        "norm": norm,
        "exactness_error": _relative(math.hypot(*errors.values()), norm),
        "tail_energy": _relative(math.hypot(*(module.tail for module in merge.modules)), norm),
        "clients": [
            {
                "name": standing.client.name,
                "digest": _digest(standing.client),
                "files": _hashes(standing.client),
                "given_weight": standing.given,
                "norm": standing.norm,
                "clip": standing.clip,
                "weight": standing.weight,
            }
            for standing in merge.clients
        ],
        "modules": [
            {
                "name": module.name,
                "rank": len(module.a),
                "shape": [len(module.b), module.a.shape[1]],
                "norm": module.norm,
                "exactness_error": _relative(errors[module.name], module.norm),
                "tail_energy": _relative(module.tail, module.norm),
            }
            for module in merge.modules
        ],
        "output": _hashes(written),
    }


def _write_files(merge: Merge, base: Bundle, folder: Path) -> dict[str, Any]:
    tensors = {}
    for module in merge.modules:
        tensors[f"base_model.model.{module.name}.lora_A.weight"] = module.a
        tensors[f"base_model.model.{module.name}.lora_B.weight"] = module.b
    write_atomically(folder / ADAPTER_WEIGHTS_NAME, safetensors.numpy.save(tensors, {"format": "pt"}))
    _write_json(folder / ADAPTER_CONFIG_NAME, peft_config(merge))
    found = _certificate(merge, base, open_client(folder, base, folder.name))
    _write_json(folder / CERTIFICATE_NAME, found)
    source = next((s.client.bundle for s in merge.clients if s.client.bundle is not None), base)
    _write_json(folder / CONFIG_NAME, {**load_object(source.path / CONFIG_NAME), "use_peft": True})
    states = [file for file in source.headers if file not in source.weight_files and not file.startswith("golden")]
    for name in (STATS_NAME, *PROCESSOR_NAMES, *states):
        if source.manifest.file(name) is not None:
            shutil.copyfile(source.path / name, folder / name)
    return found


def _next_version(merge: Merge, base: Bundle) -> str:
    bundles = [standing.client.bundle for standing in merge.clients]
    versions = [bundle.manifest.version for bundle in bundles if bundle is not None]
    return str(max(parse_version(text) for text in (base.manifest.version, *versions)).bump_patch())


def _digest(client: Client) -> str | None:
    return None if client.bundle is None else client.bundle.digest


def _hashes(client: Client) -> dict[str, str]:
    return {ADAPTER_WEIGHTS_NAME: client.sha256, ADAPTER_CONFIG_NAME: client.config_sha256}


def _relative(part: float, whole: float) -> float:
    return part / whole if whole else 0.0  # nothing of nothing


def _write_json(path: Path, document: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())
