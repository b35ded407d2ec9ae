# SPDX-License-Identifier: Apache-2.0
"""Adapters in the PEFT layout: ``adapter_config.json`` beside ``adapter_model.safetensors``.

An adapter bundle also has ``config.json`` and statistics (LeRobot writes them beside the adapter), so that its inputs, outputs
and normalisation are known without its base. The base is the manifest's ``base``; ``base_model_name_or_path`` is a path on the
machine it was trained on and is not followed.
"""

from __future__ import annotations

from pathlib import Path

from vla_checkpoint.errors import AdapterError
from vla_checkpoint.files import PathLike
from vla_checkpoint.strict_json import is_int, is_number, load_object

ADAPTER_CONFIG_NAME = "adapter_config.json"


def check_adapter_config(bundle_dir: PathLike) -> None:
    """Check that ``adapter_config.json`` names its kind, and a LoRA its rank and scale.

    Raises:
        FileError, JsonError: it is missing, unreadable or no JSON object.
        AdapterError: ``ADAPTER_CONFIG``.
    """
    path = Path(bundle_dir) / ADAPTER_CONFIG_NAME
    document = load_object(path)
    peft_type = document.get("peft_type")
    if not isinstance(peft_type, str) or not peft_type:
        raise AdapterError("ADAPTER_CONFIG", path, "peft_type must be a non-empty string")
    rank, alpha = document.get("r"), document.get("lora_alpha")
    if peft_type == "LORA" and not (is_int(rank) and rank > 0 and is_number(alpha) and alpha > 0):
        raise AdapterError("ADAPTER_CONFIG", path, "a LoRA needs r, an integer > 0, and lora_alpha > 0")
