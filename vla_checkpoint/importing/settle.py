# SPDX-License-Identifier: Apache-2.0
"""The few changes that an import makes to the checkpoint's JSON files, each of them reported."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vla_checkpoint.adapter import ADAPTER_CONFIG_NAME
from vla_checkpoint.config import CONFIG_NAME, parse_config
from vla_checkpoint.errors import ConfigError, ImportFolderError
from vla_checkpoint.files import write_atomically
from vla_checkpoint.importing.plan import choose_execute
from vla_checkpoint.importing.training import is_machine_path, notes_on
from vla_checkpoint.processors import PROCESSOR_NAMES
from vla_checkpoint.strict_json import load_object

_ORIGINS = {CONFIG_NAME: "pretrained_path", ADAPTER_CONFIG_NAME: "base_model_name_or_path"}
"""File → key that says where training began, and that nothing reads to run the policy."""


def settle(folder: Path, execute: int | None) -> list[str]:
    """Change the copied files of a checkpoint where a bundle has to differ, and return a note for each change.

    * ``n_action_steps`` of ``config.json``: ``execute``, or half of the chunk where LeRobot would execute the whole of it;
    * ``temporal_ensemble_coeff``: off, since chunks are blended;
    * paths of the training machine: removed where nothing reads them.

    Args:
        folder: the copy.
        execute: actions of a chunk to execute; ``None``: as the checkpoint has it, or half.

    Raises:
        FileError, JsonError, ConfigError: a file is unreadable or has no usable value.
        ImportFolderError: ``IMPORT_MACHINE_PATH``: the policy needs a file of the training machine.
    """
    notes = _settle_config(folder / CONFIG_NAME, execute)
    for name, key in _ORIGINS.items():
        path = folder / name
        document = load_object(path) if path.is_file() else {}
        if is_machine_path(document.get(key)):
            _write(path, {**document, key: None})
            notes.append(f"{name}: {key} was a path of the training machine, and is removed")
    for name in (*_ORIGINS, *PROCESSOR_NAMES):
        path = folder / name
        for where, value in _strings(load_object(path) if path.is_file() else {}, ""):
            if is_machine_path(value) and value.count("/") + value.count("\\") > 1:
                reason = f"{where} is {value}, which is not there on a robot; name a folder beside {CONFIG_NAME}, or a hub name"
                raise ImportFolderError("IMPORT_MACHINE_PATH", path, reason)
    return notes


def _settle_config(path: Path, execute: int | None) -> list[str]:
    document = load_object(path)
    config = parse_config(document, path)
    if execute is not None and not 1 <= execute <= config.chunk_size:
        reason = f"--execute {execute}: must be 1 to {config.chunk_size}, the actions of a chunk"
        raise ConfigError("CONFIG_FIELD_INVALID", path, reason)
    notes = notes_on(path.parent, config, list(_step_configs(path.parent)))
    changed: dict[str, Any] = {}
    chosen, note = (execute, "") if execute is not None else choose_execute(config)
    if note:
        notes.insert(0, note)
    if chosen != config.n_action_steps:
        changed["n_action_steps"] = chosen
    coefficient = document.get("temporal_ensemble_coeff")
    if coefficient is not None:
        changed["temporal_ensemble_coeff"] = None
        notes.append(f"temporal_ensemble_coeff {coefficient} is not used: a new chunk is blended into the last one")
    if changed:
        parse_config({**document, **changed}, path)
        _write(path, {**document, **changed})
    return notes


def _step_configs(folder: Path) -> Iterator[Mapping[str, Any]]:
    for name in PROCESSOR_NAMES:
        steps = load_object(folder / name).get("steps") if (folder / name).is_file() else None
        for step in steps if isinstance(steps, list) else []:
            if isinstance(step, dict) and isinstance(step.get("config"), dict):
                yield step["config"]


def _strings(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield (key path, text) of every text in a JSON value."""
    if isinstance(value, str):
        yield where, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _strings(child, f"{where}.{key}".lstrip("."))


def _write(path: Path, document: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(document, indent=4).encode())
