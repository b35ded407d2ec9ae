# SPDX-License-Identifier: Apache-2.0
"""The network of ``tiny_vla``: a small vision-language-action transformer.

A convolutional stem turns the picture into a grid of vision tokens. Instruction tokens and a few action queries that carry the
state run through pre-norm transformer blocks: they attend to each other and to the vision tokens, as in DETR's decoder.
Each action query gives a stretch of the chunk. Everything here is in normalised units.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.policies.tiny_vla.configuration_tiny_vla import TinyVLAConfig


class VisionStem(nn.Module):
    """Picture ``[B, 3, H, W]`` in [-1, 1] → tokens ``[B, N, D]``, each with its learned place on the grid."""

    def __init__(self, config: TinyVLAConfig) -> None:
        super().__init__()
        widths = (3, *config.vision_channels, config.dim_model)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inner, outer, kernel_size=5 if i == 0 else 3, stride=2, padding=2 if i == 0 else 1)
            for i, (inner, outer) in enumerate(itertools.pairwise(widths))
        )
        stride = 2 ** len(self.convolutions)
        self.grid = (config.image_shape[0] // stride, config.image_shape[1] // stride)
        self.place = nn.Parameter(waves(*self.grid, config.dim_model))
        self.norm = nn.LayerNorm(config.dim_model)

    def forward(self, picture: Tensor) -> Tensor:
        """See the class."""
        x = picture
        for i, convolution in enumerate(self.convolutions):
            x = convolution(functional.gelu(x) if i else x)
        tokens: Tensor = self.norm(x.flatten(2).transpose(1, 2)) + self.place
        return tokens


def waves(rows: int, columns: int, dim: int) -> Tensor:
    """Sines and cosines of a grid's coordinates in [-1, 1], ``[rows * columns, dim]``: where learned places start from.

    As strong as the tokens' own content, so that attention to a token is attention to a place from the first step on.
    """
    frequency = 0.5 * torch.pi * 1.3 ** torch.arange(dim // 4)
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    phases = [axis.flatten()[:, None] * frequency for axis in (x, y)]
    return torch.cat([function(phase) for phase in phases for function in (torch.sin, torch.cos)], dim=1)


class Attention(nn.Module):
    """Multi-head attention of ``queries [B, Q, D]`` to ``context [B, N, D]``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """See the class; returns ``[B, Q, D]``."""
        key, value = self.key_value(context).chunk(2, dim=-1)
        query = self._split(self.query(queries))
        mixed = functional.scaled_dot_product_attention(query, self._split(key), self._split(value))
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """Self-attention, attention to the picture, feed-forward; pre-norm, residual."""

    def __init__(self, config: TinyVLAConfig) -> None:
        super().__init__()
        dim = config.dim_model
        self.self_norm, self.cross_norm, self.feed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attention = Attention(dim, config.n_heads)
        self.cross_attention = Attention(dim, config.n_heads)
        self.feed_in = nn.Linear(dim, config.dim_feedforward)
        self.feed_out = nn.Linear(config.dim_feedforward, dim)

    def forward(self, tokens: Tensor, vision: Tensor) -> Tensor:
        """``[B, T, D]`` and ``[B, N, D]`` → ``[B, T, D]``."""
        normed = self.self_norm(tokens)
        tokens = tokens + self.self_attention(normed, normed)
        tokens = tokens + self.cross_attention(self.cross_norm(tokens), vision)
        result: Tensor = tokens + self.feed_out(functional.gelu(self.feed_in(self.feed_norm(tokens))))
        return result


class TinyVLA(nn.Module):
    """Picture, state and instruction → a chunk of actions, as offsets from the measured state (normalised action units)."""

    def __init__(self, config: TinyVLAConfig) -> None:
        super().__init__()
        dim = config.dim_model
        self.config = config
        self.vision = VisionStem(config)
        self.word = nn.Embedding(len(config.vocabulary), dim)
        self.word_place = nn.Parameter(0.1 * torch.randn(config.max_instruction_tokens, dim))
        self.state_in = nn.Linear(config.state_dim, dim)
        self.action_query = nn.Parameter(0.1 * torch.randn(config.n_action_queries, dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.chunk_size // config.n_action_queries * config.action_dim)

    def features(self, vision: Tensor, state: Tensor, words: Tensor) -> Tensor:
        """What the action queries know after the last block, ``[B, n_action_queries, D]``; ``vision`` from the stem."""
        instruction = self.word(words) + self.word_place
        queries = (self.action_query + self.state_in(state)[:, None]).expand(len(state), -1, -1)
        tokens = torch.cat([instruction, queries], dim=1)
        for block in self.blocks:
            tokens = block(tokens, vision)
        normed: Tensor = self.norm(tokens[:, words.shape[1] :])
        return normed

    def forward(self, picture: Tensor, state: Tensor, words: Tensor) -> Tensor:
        """``[B, 3, H, W]``, ``[B, S]``, int64 ``[B, L]`` → ``[B, chunk_size, A]``."""
        return self.chunk_from(self.features(self.vision(picture), state, words))

    def chunk_from(self, features: Tensor) -> Tensor:
        """The chunk ``[B, chunk_size, A]`` that the action queries' features say."""
        chunk: Tensor = self.head(features).reshape(len(features), self.config.chunk_size, self.config.action_dim)
        return chunk
