# SPDX-License-Identifier: Apache-2.0
"""Which folder is meant by the source of an import, and checkpoints of other projects that need a conversion first."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from vla_checkpoint.config import CONFIG_NAME
from vla_checkpoint.errors import CheckpointError, ImportFolderError
from vla_checkpoint.files import PathLike
from vla_checkpoint.shards import ADAPTER_WEIGHTS_NAME, INDEX_NAME, WEIGHTS_NAME
from vla_checkpoint.strict_json import load_object

_HUB_NAME = re.compile(r"(?:hf:/{1,2})?(?:models/)?([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
_CACHE_FOLDER = re.compile(r"models--(.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})$")
_INSIDE = (".", "pretrained_model", "checkpoints/last/pretrained_model", "last/pretrained_model")
"""Where a checkpoint lies in a folder: the folder itself, LeRobot's step, training run, and ``checkpoints`` folder."""
_WEIGHTS = (WEIGHTS_NAME, INDEX_NAME, ADAPTER_WEIGHTS_NAME)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_JAX = (
    "an Orbax (JAX) checkpoint; convert it to PyTorch (openpi: examples/convert_jax_model_to_pytorch.py, "
    "--checkpoint_dir, --config_name, --output_path), then to LeRobot's format: see docs/checkpoints.md"
)
_OPENPI = (
    "an openpi checkpoint, whose transforms are in openpi's code; load its weights into LeRobot's pi0 or "
    "pi05 policy, save that with the statistics of its data set, and import the result: see docs/checkpoints.md"
)
_OPENVLA = (
    "an OpenVLA or OpenVLA-OFT checkpoint: its statistics and action head lie outside the weights, the head as a "
    "pickle; write weights and head into one model.safetensors and a LeRobot config.json: see docs/checkpoints.md"
)
_PICKLE = (
    "a pickle runs code when it is loaded, and no bundle holds one; load it where you trust it, by "
    "torch.load with weights_only=True, and write model.safetensors with safetensors.torch.save_file"
)
_PROGRAM = (
    "a program of torch.export or TorchScript, which may run any code when it is loaded; export the weights to model.safetensors "
    "and name the module that builds the policy in policy_modules: see docs/adr/0018-programs-are-not-loaded.md"
)
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "_sharding")


def find_source(source: PathLike) -> Path:
    """Return the folder with the checkpoint's ``config.json``, links resolved.

    Args:
        source: that folder; LeRobot's folder of a step or of a training run (its last checkpoint); a folder of the Hugging Face
            cache, ``models--org--name``, or one of its snapshots.

    Raises:
        ImportFolderError: ``IMPORT_SOURCE``, or the code of another project's checkpoint: ``IMPORT_OPENPI``,
            ``IMPORT_OPENVLA``, ``IMPORT_JAX``, ``IMPORT_PROGRAM``, ``IMPORT_PICKLE``.
    """
    path = Path(source)
    if not path.exists():
        raise ImportFolderError("IMPORT_SOURCE", os.fspath(source), _not_there(os.fspath(source)))
    if not path.is_dir():
        if _is_program(path):
            raise ImportFolderError("IMPORT_PROGRAM", path, _PROGRAM)
        raise ImportFolderError("IMPORT_SOURCE", path, "a file; name the folder that holds config.json and the weights")
    path = _snapshot_of(path) if _CACHE_FOLDER.fullmatch(path.resolve().name) else path
    for inside in _INSIDE:
        folder = path / inside
        if folder.is_dir():
            _refuse_foreign(folder)
        if (folder / CONFIG_NAME).is_file():
            return folder.resolve()
    raise ImportFolderError("IMPORT_SOURCE", path, _nothing_in(path))


def origin_of(folder: Path) -> dict[str, str]:
    """Return the origin in a Hugging Face cache folder's name; never a path of this machine."""
    match = _SNAPSHOT.search(folder.as_posix())
    return {} if match is None else {"repository": f"{match[1]}/{match[2]}", "revision": match[3]}


def link_roots(folder: Path) -> tuple[Path, ...]:
    """Return the folders that links in a checkpoint may lead to: itself, and the cache's ``blobs`` for a snapshot."""
    return (folder, folder.parent.parent / "blobs") if _SNAPSHOT.search(folder.as_posix()) else (folder,)


def _not_there(source: str) -> str:
    match = _HUB_NAME.fullmatch(source)
    if match is None and not source.startswith("hf:"):
        return "no such folder"
    name, revision = (match[1], match[2]) if match else ("ORG/NAME", None)
    command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    return f"no such folder, and nothing is fetched from the Hugging Face hub here: `{command}` prints the folder to import"


def _nothing_in(path: Path) -> str:
    steps = sorted(p.parent.name for p in path.glob("checkpoints/*/pretrained_model"))
    if steps:
        return f"checkpoints/last is not there; name one of checkpoints/{{{','.join(steps)}}}"
    return f"no {CONFIG_NAME} in it, nor in pretrained_model or checkpoints/last/pretrained_model"


def _snapshot_of(cache: Path) -> Path:
    """Return the snapshot of a cache folder that ``refs/main`` names, or its only one."""
    ref = cache / "refs" / "main"
    if ref.is_file():
        commit = ref.read_bytes()[:100].decode(errors="replace").strip()
        if _COMMIT.fullmatch(commit):
            return cache / "snapshots" / commit
        raise ImportFolderError("IMPORT_SOURCE", ref, f"{commit!r} is no commit; name one of the folders in snapshots")
    snapshots = sorted((cache / "snapshots").glob("*"))
    if len(snapshots) == 1:
        return snapshots[0]
    names = ", ".join(p.name for p in snapshots) or "none"
    raise ImportFolderError("IMPORT_SOURCE", cache, f"no refs/main; name one of its snapshots: {names}")


def _refuse_foreign(folder: Path) -> None:
    """Refuse what another project wrote, with the way to convert it."""
    for found, code, reason in _foreign(folder):
        raise ImportFolderError(code, found, reason)


def _foreign(folder: Path) -> Iterator[tuple[Path, str, str]]:
    for name in _ORBAX:
        for found in (folder / name, folder / "params" / name):
            if found.exists():
                yield found, "IMPORT_JAX", _JAX
    for found in (folder / "metadata.pt", *folder.glob("assets/**/norm_stats.json")):
        if found.exists():
            yield found, "IMPORT_OPENPI", _OPENPI
    for found in (folder / "dataset_statistics.json", *folder.glob("action_head--*.pt")):
        if found.exists() and _is_openvla(folder):
            yield found, "IMPORT_OPENVLA", _OPENVLA
    if not any((folder / name).exists() for name in _WEIGHTS):
        for found in sorted(folder.glob("*.*")):
            if _is_program(found):
                yield found, "IMPORT_PROGRAM", _PROGRAM
        for found in [path for pattern in _PICKLES for path in sorted(folder.glob(pattern))]:
            yield found, "IMPORT_PICKLE", _PICKLE


def _is_program(path: Path) -> bool:
    """Whether a file is an archive of ``torch.export`` or TorchScript, by its name or what is in it; nothing is unpickled."""
    if path.suffix in (".pt2", ".torchscript", ".ptl"):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _is_openvla(folder: Path) -> bool:
    if any(folder.glob("action_head--*.pt")):
        return True
    try:
        kind = load_object(folder / CONFIG_NAME).get("model_type")
    except CheckpointError:
        return False
    return isinstance(kind, str) and kind.startswith("openvla")
