# SPDX-License-Identifier: Apache-2.0
"""Name, version and action space of an import: from the robot's contract, the data set, the folder's name and what was typed.

LeRobot's ``config.json`` has neither joint names nor units nor a rate. Whatever is known from two sides is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vla_checkpoint.config import PolicyConfig
from vla_checkpoint.errors import ImportFolderError, VersionError
from vla_checkpoint.importing.dataset import Dataset
from vla_checkpoint.manifest import Channel
from vla_checkpoint.version import parse_version


@dataclass(frozen=True)
class Target:
    """The robot that a checkpoint is for."""

    robot_type: str = ""
    rate_hz: float = 0.0
    channels: tuple[Channel, ...] = ()
    said_by: str = "the options"


@dataclass(frozen=True)
class Identity:
    """What a manifest says beyond the files."""

    name: str
    version: str
    robot_type: str
    rate_hz: float
    channels: tuple[Channel, ...]


def identify(out: Path, name: str, version: str, target: Target, dataset: Dataset | None) -> Identity:
    """Join what is known, and ask for the rest.

    Args:
        out: the bundle's folder; ``…/NAME/VERSION`` names both.
        name, version: as they were typed; may be empty.
        target: the contract's, or as typed; parts of it may be empty.
        dataset: the one that the policy was trained on.

    Raises:
        ImportFolderError: ``IMPORT_INCOMPLETE`` with every option that lacks, ``IMPORT_MISMATCH``.
    """
    version = version or (out.name if _is_version(out.name) else "")
    name = name or (out.parent.name if version and version == out.name else "")
    if dataset is not None:
        target = replace(
            target, robot_type=target.robot_type or dataset.robot_type, rate_hz=target.rate_hz or dataset.rate_hz
        )
    lacking = [
        option
        for option, value in (
            ("--name (or --out …/NAME/VERSION)", name),
            ("--version", version),
            ("--robot-type", target.robot_type),
            ("--rate-hz", target.rate_hz),
            (_channel_option(dataset), target.channels),
        )
        if not value
    ]
    if lacking:
        text = "; ".join(lacking)
        hint = "" if target.channels else " (a robot contract says robot type, rate and channels: --contract FILE)"
        raise ImportFolderError("IMPORT_INCOMPLETE", out, f"not known, please give {text}{hint}")
    if dataset is not None:
        _compare(target, dataset)
    return Identity(name, version, target.robot_type, target.rate_hz, target.channels)


def choose_execute(config: PolicyConfig) -> tuple[int, str]:
    """Return how many actions of a chunk to execute where nobody said, and the note to make (empty: as the checkpoint has it).

    LeRobot's defaults execute the whole chunk, then stop and think. Here the next chunk is made while the last one plays, so some
    must be left: for the time of an inference, for blending, and as the overlap of two chunks that scores are computed from.
    Half of the chunk leaves as much for that as it uses, whatever the robot.
    """
    whole = config.chunk_size
    ensembled = config.raw.get("temporal_ensemble_coeff") is not None and config.n_action_steps == 1
    if whole == 1 or (config.n_action_steps < whole and not ensembled):
        return config.n_action_steps, ""
    was = f"checkpoint: {config.n_action_steps}"
    return (
        whole // 2,
        f"{whole // 2} of {whole} actions of a chunk are executed ({was}); --execute N says another number",
    )


def _channel_option(dataset: Dataset | None) -> str:
    option = "--channel NAME:UNIT:MODE for each number of an action, in order"
    if dataset is None or not dataset.action:
        return option
    return f"{option}: " + " ".join(f"--channel {name}:UNIT:absolute" for name in dataset.action)


def _is_version(text: str) -> bool:
    try:
        parse_version(text)
    except VersionError:
        return False
    return True


def _compare(target: Target, dataset: Dataset) -> None:
    if abs(target.rate_hz - dataset.rate_hz) > 1e-6 * dataset.rate_hz:
        _refuse(dataset, f"recorded at {dataset.rate_hz:g} Hz; {target.said_by}: {target.rate_hz:g} Hz")
    ours, theirs = [c.name for c in target.channels], list(dataset.action)
    if not theirs or _plain(ours) == _plain(theirs):
        return
    how = "another order" if sorted(_plain(ours)) == sorted(_plain(theirs)) else "other names"
    _refuse(dataset, f"actions are {', '.join(theirs)}; {target.said_by}, {how}: {', '.join(ours)}")


def _plain(names: Sequence[str]) -> list[str]:
    """LeRobot's robots add ``.pos`` to a joint's name."""
    return [name.removesuffix(".pos") for name in names]


def _refuse(dataset: Dataset, reason: str) -> None:
    raise ImportFolderError("IMPORT_MISMATCH", dataset.path, reason)
