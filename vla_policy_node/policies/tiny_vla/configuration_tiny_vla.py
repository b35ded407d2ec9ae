# SPDX-License-Identifier: Apache-2.0
"""What ``config.json`` says of a ``tiny_vla``: LeRobot's keys, and the sizes of the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vla_policy_node.policies.errors import PolicyConfigError

TYPE = "tiny_vla"
STATE = "observation.state"
ACTION = "action"
NORMALIZATION_MODES = ("IDENTITY", "MEAN_STD", "MIN_MAX", "QUANTILES")


@dataclass(frozen=True)
class TinyVLAConfig:
    """Sizes of the network and its features. ``image_shape`` is (height, width)."""

    state_dim: int
    action_dim: int
    image_key: str
    image_shape: tuple[int, int]
    chunk_size: int
    n_action_steps: int
    normalization_mapping: Mapping[str, str]
    vocabulary: tuple[str, ...]
    max_instruction_tokens: int = 8
    dim_model: int = 96
    n_heads: int = 4
    n_layers: int = 3
    dim_feedforward: int = 288
    n_action_queries: int = 10
    vision_channels: tuple[int, ...] = (24, 48)

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other."""
        positive = ("state_dim", "action_dim", "n_heads", "n_layers", "dim_feedforward", "max_instruction_tokens")
        for name in positive:
            _require(getattr(self, name) >= 1, name, "must be at least 1")
        _require(1 <= self.n_action_steps <= self.chunk_size, "n_action_steps", "must lie between 1 and chunk_size")
        queries_fit = self.n_action_queries >= 1 and self.chunk_size % self.n_action_queries == 0
        _require(queries_fit, "n_action_queries", "must divide chunk_size")
        heads_fit = self.dim_model % self.n_heads == 0 and self.dim_model % 4 == 0
        _require(heads_fit, "dim_model", "must be a multiple of n_heads and of 4")
        stride = 2 ** (len(self.vision_channels) + 1)
        image_fits = all(side > 0 and side % stride == 0 for side in self.image_shape)
        _require(image_fits, "input_features", f"image sides must be multiples of {stride}")
        _require(self.vocabulary[:2] == ("<pad>", "<unk>"), "vocabulary", "must begin with <pad>, <unk>")
        _require(len(set(self.vocabulary)) == len(self.vocabulary), "vocabulary", "has a word twice")
        for kind in ("STATE", "ACTION"):
            mode = self.normalization_mapping.get(kind)
            known = mode in NORMALIZATION_MODES
            _require(known, f"normalization_mapping.{kind}", f"{mode!r} is not one of {NORMALIZATION_MODES}")
        visual = self.normalization_mapping.get("VISUAL", "IDENTITY")
        _require(visual == "IDENTITY", "normalization_mapping.VISUAL", "must be IDENTITY")

    @classmethod
    def from_file(cls, path: Path) -> TinyVLAConfig:
        """Read ``config.json``; raises :class:`PolicyConfigError` with file and field."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls.from_json(raw)
        except (OSError, ValueError) as error:
            raise PolicyConfigError(f"{path.name}: {error}") from error
        except PolicyConfigError as error:
            raise PolicyConfigError(f"{path.name}: {error}") from error

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> TinyVLAConfig:
        """From LeRobot's layout; raises :class:`PolicyConfigError` with the field."""
        try:
            _require(raw["type"] == TYPE, "type", f"{raw['type']!r} is not {TYPE!r}")
            inputs, outputs = raw["input_features"], raw["output_features"]
            images = [key for key in inputs if inputs[key]["type"] == "VISUAL"]
            _require(len(images) == 1, "input_features", "need exactly one VISUAL feature")
            channels, height, width = (int(n) for n in inputs[images[0]]["shape"])
            _require(channels == 3, f"input_features.{images[0]}", "needs three channels")
            own = {f.name for f in fields(cls)} - {"state_dim", "action_dim", "image_key", "image_shape"}
            sizes: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in raw.items() if key in own
            }
            sizes["state_dim"] = int(inputs[STATE]["shape"][0])
            sizes["action_dim"] = int(outputs[ACTION]["shape"][0])
            sizes["image_key"], sizes["image_shape"] = images[0], (height, width)
            return cls(**sizes)
        except KeyError as error:
            raise PolicyConfigError(f"{error.args[0]} is missing") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise PolicyConfigError(f"malformed: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """LeRobot's layout (images channel-first, as LeRobot writes them)."""
        derived = {"state_dim", "action_dim", "image_key", "image_shape"}
        sizes = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in derived}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in sizes.items()}
        return {
            "type": TYPE,
            "n_obs_steps": 1,
            "input_features": {
                STATE: {"type": "STATE", "shape": [self.state_dim]},
                self.image_key: {"type": "VISUAL", "shape": [3, *self.image_shape]},
            },
            "output_features": {ACTION: {"type": "ACTION", "shape": [self.action_dim]}},
            "use_peft": False,
            **plain,
            "normalization_mapping": dict(self.normalization_mapping),
        }


def _require(condition: bool, field: str, reason: str) -> None:
    if not condition:
        raise PolicyConfigError(f"{field} {reason}")
