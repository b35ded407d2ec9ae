# SPDX-License-Identifier: Apache-2.0
"""The network of ``bench_transformer``: words, state and action queries through pre-norm transformer layers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

AMPLITUDE_RAD = 0.05


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes; the defaults make 50 million parameters."""

    joints: int = 7
    horizon: int = 100
    execute: int = 25
    dim: int = 640
    layers: int = 10
    heads: int = 10
    words: int = 8
    queries: int = 20

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> TransformerConfig:
        """Read the sizes from a bundle's ``config.json``."""
        return cls(**{f.name: int(document[f.name]) for f in fields(cls)})

    @classmethod
    def large(cls) -> TransformerConfig:
        """Return sizes that make 500 million parameters; its chunks are as long as its inferences need."""
        return cls(horizon=800, execute=200, dim=1600, layers=16, heads=16)

    def to_json(self) -> dict[str, Any]:
        """Return a ``config.json`` with LeRobot's keys and the sizes."""
        joints = {"shape": [self.joints]}
        return {
            "type": "bench_transformer",
            "input_features": {"observation.state": {"type": "STATE", **joints}},
            "output_features": {"action": {"type": "ACTION", **joints}},
            "normalization_mapping": {"STATE": "IDENTITY", "ACTION": "IDENTITY"},
            "chunk_size": self.horizon,
            "n_action_steps": self.execute,
            "n_obs_steps": 1,
            **asdict(self),
        }


class Transformer(nn.Module):
    """State ``[B, S]`` and words int64 ``[B, L]`` → a chunk of actions ``[B, H, A]`` [rad]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.word = nn.Embedding(256, config.dim)
        self.state_in = nn.Linear(config.joints, config.dim)
        self.query = nn.Parameter(torch.randn(config.queries, config.dim))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.dim, config.heads, 4 * config.dim, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(config.layers)
        )
        self.head = nn.Linear(config.dim, config.horizon // config.queries * config.joints)

    def forward(self, state: Tensor, words: Tensor) -> Tensor:
        """See the class."""
        tokens = torch.cat([self.word(words), self.state_in(state)[:, None], self.query[None]], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        chunk = self.head(tokens[:, -self.config.queries :]).reshape(len(state), self.config.horizon, -1)
        result: Tensor = AMPLITUDE_RAD * torch.tanh(chunk)
        return result
