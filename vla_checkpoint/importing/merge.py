# SPDX-License-Identifier: Apache-2.0
"""A LoRA adapter merged into its base at import (the formula: ``vla_checkpoint.adapter``). One tensor is in memory at a time."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from vla_checkpoint.adapter import ADAPTER_CONFIG_NAME, changes_of
from vla_checkpoint.bundle import Bundle
from vla_checkpoint.config import CONFIG_NAME, load_config
from vla_checkpoint.errors import AdapterError
from vla_checkpoint.files import write_atomically
from vla_checkpoint.header import read_header
from vla_checkpoint.processors import PROCESSOR_NAMES
from vla_checkpoint.shards import ADAPTER_WEIGHTS_NAME, INDEX_NAME
from vla_checkpoint.stats import STATS_NAME
from vla_checkpoint.strict_json import load_object
from vla_checkpoint.tensors import read_array, to_bytes


def merge_adapter(folder: Path, base: Bundle) -> dict[str, Any]:
    """Turn a copied PEFT folder into a full checkpoint: the base's weights with the adapter in them.

    Configuration and statistics are the adapter's; statistics that it does not have are the base's.

    Args:
        folder: holds ``adapter_config.json``, ``adapter_model.safetensors`` and ``config.json``; is changed.
        base: the bundle that the adapter was trained on.

    Returns:
        For the lineage: the base's digest and the method.

    Raises:
        CheckpointError: a file is unreadable or malformed.
        AdapterError: ``ADAPTER_UNSUPPORTED``: it is more than a plain LoRA; ``ADAPTER_MISMATCH``: it is not one of this base.
    """
    if base.manifest.kind != "full":
        text = "an adapter itself; name the full bundle that it was trained on"
        raise AdapterError("ADAPTER_MISMATCH", base.path, text)
    config = load_config(folder)
    if config.type != base.config.type:
        text = f"type is {config.type!r}, the base's {base.config.type!r}"
        raise AdapterError("ADAPTER_MISMATCH", folder / CONFIG_NAME, text)
    path = folder / ADAPTER_WEIGHTS_NAME
    weights = {info.name: info for file in base.weight_files for info in base.headers[file].tensors.values()}
    changes = changes_of(folder, read_header(path), weights)
    for file in base.weight_files:
        shutil.copyfile(base.path / file, folder / file)
        with (folder / file).open("r+b") as out:
            for change in (changes[name] for name in base.headers[file].tensors if name in changes):
                merged = change.apply(partial(read_array, base.path / file), partial(read_array, path))
                out.seek(change.base.start)
                out.write(to_bytes(merged, change.base.dtype))
    _replace_small_files(folder, base)
    return {"parent": base.digest, "method": "merge"}


def _replace_small_files(folder: Path, base: Bundle) -> None:
    for name in (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME):
        (folder / name).unlink()
    document = load_object(folder / CONFIG_NAME)
    if document.get("use_peft"):
        write_atomically(folder / CONFIG_NAME, json.dumps({**document, "use_peft": False}, indent=4).encode())
    wanted = [INDEX_NAME]
    if not any((folder / name).exists() for name in (STATS_NAME, *PROCESSOR_NAMES)):
        wanted += [STATS_NAME, *PROCESSOR_NAMES, *(f for f in base.headers if f not in base.weight_files)]
    for name in wanted:
        if base.manifest.file(name) is not None and not name.startswith("golden"):
            shutil.copyfile(base.path / name, folder / name)
