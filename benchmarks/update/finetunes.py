# SPDX-License-Identifier: Apache-2.0
"""Real fine-tunes to measure deltas on: a transformer is trained on the text of docs/, then trained further on the sources.

A byte-level language model stands for a policy's network: what decides about the size of a delta is how AdamW has moved the
weights, and it moves those of every transformer in the same way. Weights are trained in float32; the bf16 files hold them
rounded, as mixed-precision training saves them. The pictures and robots of a policy would only make the training slower.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

TOP = Path(__file__).resolve().parents[2]
BASE = "base"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_CONTEXT, _BATCH, _RANK = 48, 2, 8


@dataclass(frozen=True)
class Size:
    """How large, and how long."""

    dim: int = 384
    layers: int = 9
    steps: int = 300
    """Of the base."""
    share: float = 1.0
    """Of the steps of every fine-tune that are done."""


FULL, SMALL = Size(), Size(dim=192, layers=3, steps=60, share=0.1)


@dataclass(frozen=True)
class FineTune:
    """One way to train further."""

    name: str
    rate: float
    """Learning rate of AdamW."""
    stops: tuple[int, ...]
    """Steps after which the weights are kept."""
    trained: str = "all"
    """``all``, ``head`` (the last two layers and the head: a frozen backbone) or ``lora`` (rank 8 on attention, merged)."""


FINE_TUNES = (
    FineTune("lr1e-5", 1e-5, (50, 300)),
    FineTune("frozen", 1e-5, (300,), "head"),
    FineTune("lora", 1e-4, (300,), "lora"),
    FineTune("lr1e-4", 1e-4, (300,)),
    FineTune("lr1e-6", 1e-6, (300,)),
)


class Network(nn.Module):
    """Bytes ``[B, L]`` → logits of the next byte ``[B, L, 256]``."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.byte = nn.Embedding(256, size.dim)
        self.place = nn.Parameter(torch.randn(_CONTEXT, size.dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(size.dim, 6, 4 * size.dim, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(size.layers)
        )
        self.norm = nn.LayerNorm(size.dim)
        self.head = nn.Linear(size.dim, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(_CONTEXT), persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        """See the class."""
        x = self.byte(text) + self.place
        for layer in self.layers:
            x = layer(x, src_mask=self.mask, is_causal=True)
        logits: Tensor = self.head(self.norm(x))
        return logits


class LowRank(nn.Module):
    """A weight plus B·A."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(_RANK, weight.shape[1]) * weight.shape[1] ** -0.5)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], _RANK))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight."""
        return weight + self.b @ self.a


@dataclass
class Text:
    """A body of text to draw from."""

    pattern: str
    data: Tensor = field(init=False)

    def __post_init__(self) -> None:
        whole = b"".join(path.read_bytes() for path in sorted(TOP.glob(self.pattern)))
        self.data = torch.frombuffer(bytearray(whole), dtype=torch.uint8)

    def batches(self, seed: int) -> Iterator[Tensor]:
        """Yield batches ``[B, L + 1]`` for ever."""
        generator = torch.Generator().manual_seed(seed)
        window = torch.arange(_CONTEXT + 1)
        while True:
            begins = torch.randint(len(self.data) - _CONTEXT, (_BATCH, 1), generator=generator)
            yield self.data[begins + window].long()


def train(
    network: nn.Module, parameters: Iterable[nn.Parameter], text: Text, rate: float, steps: int, seed: int
) -> Iterator[float]:
    """Train with AdamW; yield the loss after every step."""
    network.train()
    optimizer = torch.optim.AdamW(list(parameters), lr=rate, weight_decay=0.01, fused=True)
    for batch in itertools.islice(text.batches(seed), steps):
        loss = nn.functional.cross_entropy(network(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield loss.item()


def make(folder: Path, size: Size, say: Callable[[str], None], plans: Iterable[FineTune] = FINE_TUNES) -> list[str]:
    """Train what is not in ``folder`` yet; return the names of the fine-tunes, each ``<name>.<dtype>.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    base = Network(size)
    if not (folder / f"{BASE}.fp32.safetensors").exists():
        text, losses = Text("docs/**/*.md"), []
        for loss in train(base, base.parameters(), text, 3e-4, size.steps, seed=1):
            losses.append(loss)
            if len(losses) % 50 == 0:
                say(f"{BASE}: step {len(losses)} of {size.steps}, loss {sum(losses[-50:]) / 50:.3f}")
        _save(base.state_dict(), folder, BASE)
    names: list[str] = []
    for plan in plans:
        stops = {max(1, round(stop * size.share)): f"{plan.name}x{stop}" for stop in plan.stops}
        names += stops.values()
        if not all((folder / f"{name}.fp32.safetensors").exists() for name in stops.values()):
            _fine_tune(folder, size, plan, stops, say)
    return names


def _fine_tune(folder: Path, size: Size, plan: FineTune, stops: dict[int, str], say: Callable[[str], None]) -> None:
    from safetensors.torch import load_file

    network = Network(size)
    network.load_state_dict(load_file(folder / f"{BASE}.fp32.safetensors"))
    parameters: list[nn.Parameter] = list(network.parameters())
    if plan.trained == "head":
        parts = [*network.layers[-2:], network.norm, network.head]
        parameters = [parameter for part in parts for parameter in part.parameters()]
    elif plan.trained == "lora":
        attentions = [module for module in network.modules() if isinstance(module, nn.MultiheadAttention)]
        places: list[tuple[nn.Module, str]] = [(attention, "in_proj_weight") for attention in attentions]
        places += [(attention.out_proj, "weight") for attention in attentions]
        added = [(module, name, LowRank(getattr(module, name))) for module, name in places]
        parameters = [parameter for _, _, low_rank in added for parameter in low_rank.parameters()]
        for module, name, low_rank in added:
            parametrize.register_parametrization(module, name, low_rank)
    text = Text("vla_*/**/*.py")
    for step, loss in enumerate(train(network, parameters, text, plan.rate, max(stops), seed=2), start=1):
        if step in stops:
            say(f"{stops[step]}: loss {loss:.3f}")
            _save(_merged(network), folder, stops[step])


def _merged(network: nn.Module) -> dict[str, Tensor]:
    """Return the plain weights, factors added."""
    found = {}
    for name, value in network.state_dict().items():
        if ".parametrizations." not in name:
            found[name] = value
        elif name.endswith(".original"):
            module, _, weight = name.removesuffix(".original").partition(".parametrizations.")
            found[f"{module}.{weight}"] = getattr(network.get_submodule(module), weight).detach()
    return found


def _save(state: dict[str, Tensor], folder: Path, name: str) -> None:
    for label, dtype in DTYPES.items():
        path = folder / f"{name}.{label}.safetensors"
        save_file({key: value.to(dtype).contiguous() for key, value in state.items()}, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
