# SPDX-License-Identifier: Apache-2.0
"""What LeRobot's configurations say beyond the policy's shape: where it comes from, which release reads it, what is not used."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_checkpoint.config import PolicyConfig
from vla_checkpoint.strict_json import is_int, load_object

TRAIN_CONFIG_NAME = "train_config.json"
LEROBOT_TYPES = frozenset({
    "act", "diffusion", "groot", "multi_task_dit", "pi0", "pi05", "pi0_fast", "sac", "smolvla", "tdmpc", "vqbet", "wall_x",
    "xvla",
})  # fmt: skip
"""Policy types that LeRobot 0.4 to 0.6 brings with it."""

_MACHINE_PATH = re.compile(r"(?:/|~|[A-Za-z]:[\\/]|\\\\).*")


@dataclass(frozen=True)
class Training:
    """What is known of the training run."""

    dataset: str = ""
    """``org/name`` of the data set; empty: not known, or a folder of the training machine."""
    root: str = ""
    """Folder of the data set on the training machine."""
    lineage: Mapping[str, Any] = ()  # type: ignore[assignment]
    config: Mapping[str, Any] = ()  # type: ignore[assignment]


def is_machine_path(text: object) -> bool:
    """Whether a value is a path of the machine that wrote it, which means nothing elsewhere."""
    return isinstance(text, str) and _MACHINE_PATH.fullmatch(text) is not None


def read_training(folder: Path) -> Training:
    """Read ``train_config.json`` of a checkpoint and the step beside it, if they are there.

    Raises:
        FileError, JsonError: it is unreadable or no JSON object.
    """
    step_path = folder.parent / "training_state" / "training_step.json"
    step = load_object(step_path).get("step") if step_path.is_file() else None
    lineage: dict[str, Any] = {"step": step} if is_int(step) else {}
    path = folder / TRAIN_CONFIG_NAME
    if not path.is_file():
        return Training(lineage=lineage, config={})
    config = load_object(path)
    dataset, policy = (
        value if isinstance(value, dict) else {} for value in (config.get("dataset"), config.get("policy"))
    )
    told = {
        "dataset": dataset.get("repo_id"),
        "dataset_revision": dataset.get("revision"),
        "policy": policy.get("type"),
        "trained_from": policy.get("pretrained_path"),
        "steps": config.get("steps"),
        "seed": config.get("seed"),
    }
    lineage |= {key: value for key, value in told.items() if value is not None and not is_machine_path(value)}
    name, root = dataset.get("repo_id"), dataset.get("root")
    return Training(
        dataset=name if isinstance(name, str) else "",
        root=root if isinstance(root, str) else "",
        lineage=lineage,
        config=config,
    )


def lerobot_needed(policy_type: str, config: Mapping[str, Any], train_config: Mapping[str, Any]) -> str | None:
    """Return the LeRobot releases that read a checkpoint, as a PEP 440 specifier; ``None``: it is no policy of LeRobot's.

    LeRobot refuses keys of ``config.json`` that it does not know. 0.6 began to write ``pretrained_revision``, 0.5 the training
    run's ``cudnn_deterministic``, 0.4.3 ``use_peft``. What 0.3 wrote is read by 0.4.
    """
    if policy_type not in LEROBOT_TYPES:
        return None
    if "pretrained_revision" in config:
        return ">=0.6,<0.7"
    if "cudnn_deterministic" in train_config:
        return ">=0.5,<0.6"
    return ">=0.4.3,<0.5" if "use_peft" in config else ">=0.4,<0.5"


def releases_like(version: str) -> str | None:
    """Return the specifier of the releases with the same major and minor number as ``version``; ``None``: it is no version."""
    match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})(?:\.\d{1,4})?", version)
    return None if match is None else f">={match[1]}.{match[2]},<{match[1]}.{int(match[2]) + 1}"


def notes_on(folder: Path, config: PolicyConfig, step_configs: Collection[Mapping[str, Any]]) -> list[str]:
    """Return what a checkpoint asks for and a robot does not do, or needs from elsewhere, one sentence each.

    Args:
        folder: the checkpoint; language models and tokenizers may lie in it under their hub names.
        config: of the policy.
        step_configs: the ``config`` objects of its processors' steps.
    """
    raw, notes = config.raw, []
    if raw.get("pretrained_backbone_weights"):
        notes.append(
            f"pretrained_backbone_weights {raw['pretrained_backbone_weights']} are in the file already: nothing is downloaded"
        )
    if raw.get("rtc_config"):
        notes.append("rtc_config is not used: chunks are blended")
    wanted = {raw.get(key) for key in ("vlm_model_name", "tokenizer_name", "text_tokenizer_name", "base_model_path")}
    wanted |= {step.get(key) for step in step_configs for key in ("tokenizer_name", "action_tokenizer_name")}
    notes += [
        f"{name} is not in the bundle: a robot needs its files in its Hugging Face cache, or beside config.json under that name"
        for name in sorted(name for name in wanted if isinstance(name, str) and name)
        if not (folder / name).is_dir()
    ]
    return notes
