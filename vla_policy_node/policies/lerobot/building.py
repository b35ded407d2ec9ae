# SPDX-License-Identifier: Apache-2.0
"""A LeRobot policy and its processors from a bundle, without LeRobot's ``from_pretrained``.

That would read the weights anew from files that nobody has checked, accept missing ones, and fetch what is not there. Here the
weights are the verified tensors, all of them and no others, and nothing comes from the network: pretrained backbones are not
fetched, since their weights are among the tensors, and tokenizers and processors of language models are folders of the
bundle, or lie in this machine's Hugging Face cache.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import draccus
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from torch import nn
from torch.overrides import TorchFunctionMode

from vla_policy_node.policies.base import TensorView
from vla_policy_node.policies.errors import PolicyAssetError, PolicyConfigError
from vla_policy_node.policies.torch_tensors import as_state_dict, load_strictly

_OURS = ("action_limits", "n_action_steps")
"""Keys of a bundle's config.json that LeRobot does not have with every policy."""
_OLD_STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
"""Buffers of LeRobot <= 0.3; the import wrote them to stats.json."""


@dataclass(frozen=True)
class Parts:
    """What a policy is made of."""

    policy: Any
    """LeRobot's ``PreTrainedPolicy``."""
    preprocess: Callable[[dict[str, Any]], dict[str, Any]]
    postprocess: Callable[[torch.Tensor], torch.Tensor]
    horizon: int
    execute: int


def build(bundle_dir: Path, tensors: Mapping[str, TensorView], device: str) -> Parts:
    """Build network and processors. Raises :class:`vla_policy_node.policies.errors.PolicyError`, and whatever LeRobot raises."""
    document = json.loads((bundle_dir / "config.json").read_text(encoding="utf-8"))
    config = _parse(document, bundle_dir, device)
    horizon = _horizon(config)
    if config.type == "diffusion":
        config.n_action_steps = horizon  # it returns no more than it is to execute
    preprocess, postprocess = _processors(bundle_dir, config, device)
    config.device = "cpu"  # pi0 takes memory for its network there, beside which the weights would have to fit
    with _from_bundle_or_cache(getattr(config, "vlm_model_name", "")), _Unfilled():
        policy = get_policy_class(config.type)(config)
    config.device = torch.device(device).type
    dtypes = {k: v.dtype for k, v in policy.state_dict().items()}
    state = {k: v for k, v in as_state_dict(tensors).items() if k in dtypes or not k.startswith(_OLD_STATISTICS)}
    load_strictly(policy, state, torch.device(device), dtypes)
    policy.eval().requires_grad_(False)
    return Parts(policy, preprocess, postprocess, horizon, document.get("n_action_steps", horizon))


def _parse(document: Mapping[str, Any], bundle_dir: Path, device: str) -> Any:
    """Return LeRobot's configuration of a policy of which nothing has to be fetched."""
    known = {f.name for f in dataclasses.fields(PreTrainedConfig.get_choice_class(document["type"]))}
    kept = {k: v for k, v in document.items() if k in known or k not in _OURS}
    ours = {"device": torch.device(device).type, "pretrained_backbone_weights": None, "load_vlm_weights": False}
    if "vlm_model_name" in document:
        ours["vlm_model_name"] = _local(bundle_dir, document["vlm_model_name"])
    try:
        return draccus.decode(PreTrainedConfig, kept | {k: v for k, v in ours.items() if k in known})
    except draccus.utils.DraccusException as e:
        raise PolicyConfigError(f"config.json: {e}") from e


def _horizon(config: Any) -> int:
    if config.type == "diffusion":
        return int(config.horizon - config.n_obs_steps + 1)  # the horizon begins at the oldest observation
    return int(config.action_chunk_size if config.type == "vqbet" else config.chunk_size)


def _processors(bundle_dir: Path, config: Any, device: str) -> tuple[Any, Any]:
    """Return LeRobot's own processors: as saved, or for a checkpoint of LeRobot <= 0.3 made of its statistics."""
    saved = bundle_dir / "policy_preprocessor.json"
    if not saved.exists():
        raw = json.loads((bundle_dir / "stats.json").read_text(encoding="utf-8"))
        stats = {key: {name: torch.tensor(v) for name, v in entry.items()} for key, entry in raw.items()}
        with _from_bundle_or_cache("the tokenizer"):
            before, after = make_pre_post_processors(config, dataset_stats=stats)
            return before, after
    before_overrides: dict[str, Any] = {"device_processor": {"device": device}}
    name = next((s["config"]["tokenizer_name"] for s in _steps(saved) if "tokenizer_name" in s.get("config", {})), None)
    if name is not None:
        before_overrides["tokenizer_processor"] = {"tokenizer_name": _local(bundle_dir, name)}
    with _from_bundle_or_cache(str(name)):
        before, after = make_pre_post_processors(
            config, pretrained_path=str(bundle_dir), preprocessor_overrides=before_overrides
        )
        return before, after


def _steps(path: Path) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["steps"]
    return steps


def _local(bundle_dir: Path, name: str) -> str:
    """Return the bundle's own folder of that name; else the name, as the Hugging Face cache knows it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise PolicyAssetError(
            f"{name!r} lies outside the bundle: name a folder of the bundle, or a Hugging Face model"
        )
    return str(bundle_dir / path) if (bundle_dir / path).is_dir() else name


@contextmanager
def _from_bundle_or_cache(name: str) -> Iterator[None]:
    """Say what is missing when transformers does not find it (a worker's environment keeps it off the network)."""
    try:
        yield
    except Exception as e:
        cause: BaseException | None = e
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__  # LeRobot's pipeline raises a ValueError from it
        if cause is None:
            raise
        where = (
            "is not whole in the bundle nor in this machine's Hugging Face cache, and nothing is downloaded on a robot"
        )
        raise PolicyAssetError(
            f"{name} {where}: put its files into the bundle under that name, and import again"
        ) from e


class _Unfilled(TorchFunctionMode):
    """Leaves new parameters as they were allocated: memory that is never touched is never used, and all are replaced.

    Unlike the meta device it leaves alone what is no parameter, and may be in no checkpoint: buffers, noise schedules.
    """

    _RANDOM = (torch.Tensor.normal_, torch.Tensor.uniform_)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        name = getattr(func, "__name__", "")
        fills = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        if func in self._RANDOM or (fills and isinstance(target, nn.Parameter)):
            return target
        return func(*args, **kwargs)
