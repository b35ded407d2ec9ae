# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of ``tiny_vla`` by behaviour cloning on recorded steps, of all its weights or of a LoRA adapter.

The loss is the mean absolute error of the chunk against the actions that were recorded from there on, in standard deviations of
the base's statistics (which the candidate keeps). Pre-training (``vla_sim.train``) has auxiliary heads for where blocks are seen
and where the joints come to rest; recordings have no such labels, so there are none here.

Each step draws its batch from a generator seeded by the run's seed and the step's number: a run that was interrupted goes on from
its checkpoint and ends with the same weights, bit by bit, as one that was not (same machine, same number of threads).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from vla_checkpoint.files import write_atomically
from vla_learning.datasets.reading import DataSet, open_dataset
from vla_learning.training import checkpoint
from vla_learning.training.checkpoint import Standing
from vla_learning.training.errors import TrainingError, check_range
from vla_learning.training.examples import Examples, Index
from vla_learning.training.log import TrainingLog, plot_losses, torch_threads
from vla_learning.training.lora import LoRASettings, insert, write_adapter
from vla_learning.training.recordings import examples_of
from vla_learning.training.trainer import Task, Trained
from vla_policy_node.policies.tiny_vla.configuration_tiny_vla import ACTION, STATE, TYPE, TinyVLAConfig
from vla_policy_node.policies.tiny_vla.modeling_tiny_vla import TinyVLA
from vla_policy_node.policies.tiny_vla.processor_tiny_vla import TinyVLAProcessor

_WEIGHTS = "model.safetensors"
_COPIED = ("stats.json",)
_HELD_OUT_EXAMPLES = 256
_LAST_STEPS = 20  # over which the loss is given
Method = Literal["full", "lora"]


@dataclass(frozen=True)
class Settings:
    """How long, how much at a time, and of what.

    Attributes:
        method: ``full`` trains all weights; ``lora`` an adapter of every linear layer.
        steps: of the optimiser.
        batch: examples a step.
        learning_rate: highest; reached after ``warm_up_steps``, then falling by a cosine to 0.
        checkpoint_every: steps between checkpoints.
        threads: of torch; part of what a seed reproduces.
        lora: size of the adapter.
    """

    method: Method = "full"
    steps: int = 400
    batch: int = 64
    learning_rate: float = 3e-4
    warm_up_steps: int = 20
    weight_decay: float = 1e-4
    checkpoint_every: int = 100
    threads: int = 1
    lora: LoRASettings = field(default_factory=LoRASettings)

    def __post_init__(self) -> None:
        """Raise TRAINING_SETTING for what no run can have."""
        if self.method not in get_args(Method):
            raise TrainingError(
                "TRAINING_SETTING", "method", f"{self.method!r} is none of {', '.join(get_args(Method))}"
            )
        whole = {name: (1, 10**7) for name in ("steps", "batch", "checkpoint_every")}
        check_range(
            self, **whole, learning_rate=(1e-9, 1.0), warm_up_steps=(0, 10**7), weight_decay=(0, 1), threads=(1, 1024)
        )


@dataclass(frozen=True)
class Batch:
    """What the network gets and what it should say, normalised; ``counts``: which targets do, ``[B, H]``."""

    picture: Tensor
    state: Tensor
    words: Tensor
    offsets: Tensor
    counts: Tensor


def fine_tune(
    base: Path,
    examples: Examples,
    out: Path,
    work: Path,
    settings: Settings,
    *,
    seed: int,
    run: Mapping[str, Any] | None = None,
    held_out: Examples | None = None,
    quiet: bool = False,
    plots: bool = True,
) -> Standing:
    """Train, and write the candidate's files (without manifest and golden) to ``out``; return the losses.

    Args:
        base: folder of a full ``tiny_vla`` bundle.
        examples: to learn from.
        out: folder of the candidate; made if missing.
        work: folder of checkpoint, plot and event files; made if missing.
        settings: see there.
        seed: of the batches and of the adapter's start.
        run: what else identifies the run (digests of base and data): a checkpoint of another run is refused.
        held_out: examples to watch, not learned from.
        quiet: show no progress.
        plots: draw the loss and write event files.

    Raises:
        TrainingError: ``TRAINING_NO_EXAMPLES``, ``TRAINING_CHECKPOINT``, ``TRAINING_DIVERGED``.
        PolicyError: the base is not a ``tiny_vla`` that can be loaded.
    """
    if examples.total_weight <= 0.0:
        text = "nothing to learn from: no step of a success or of a correction has a sampling weight above 0"
        raise TrainingError("TRAINING_NO_EXAMPLES", "data set", text)
    work.mkdir(parents=True, exist_ok=True)
    with torch_threads(settings.threads):
        tuner = _Tuner(base, examples, settings, seed)
        whole = {**(run or {}), "seed": seed, **asdict(settings)}
        standing = checkpoint.restore(work, whole, tuner.learned, tuner.optimizer)
        with TrainingLog(work, settings.steps, standing.step, quiet=quiet, events=plots) as log:
            while standing.step < settings.steps:
                tuner.step(standing, log)
                if standing.step % settings.checkpoint_every == 0 or standing.step == settings.steps:
                    if held_out is not None and len(held_out):
                        standing.held_out.append((standing.step, tuner.watched(held_out)))
                        log.held_out(*standing.held_out[-1])
                    checkpoint.save(work, whole, standing, tuner.learned, tuner.optimizer)
        if plots:
            plot_losses(work / "loss.png", standing.losses, standing.held_out)
        tuner.write(base, out)
    return standing


class _Tuner:
    """Network, optimiser and batches of one run."""

    def __init__(self, base: Path, examples: Examples, settings: Settings, seed: int) -> None:
        self._examples, self._settings, self._seed = examples, settings, seed
        config = TinyVLAConfig.from_file(base / "config.json")
        self._processor = TinyVLAProcessor.from_files(config, base)
        self._model = TinyVLA(config)
        weights = safetensors.torch.load_file(base / _WEIGHTS)
        self._dtypes = {name: tensor.dtype for name, tensor in weights.items()}
        self._model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._adapters = insert(self._model, settings.lora, seed) if settings.method == "lora" else {}
        self._model.train()
        self.learned = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.learned.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def step(self, standing: Standing, log: TrainingLog) -> None:
        """Take one step; raises TRAINING_DIVERGED when the loss is no number."""
        rate = self._rate(standing.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        index = self._examples.draw(self._settings.batch, np.random.default_rng([self._seed, standing.step]))
        loss = self._loss(self._batch(self._examples, index))
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.learned.values(), 1.0)
        self.optimizer.step()
        standing.step += 1
        standing.losses.append(loss.item())
        if not math.isfinite(standing.losses[-1]):
            text = "the loss is not a finite number any more; lower the learning rate and begin in another folder"
            raise TrainingError("TRAINING_DIVERGED", f"step {standing.step}", text)
        log.step(standing.step, standing.losses[-1], rate)

    def watched(self, held_out: Examples) -> float:
        """The loss on held-out examples, the same ones at every call."""
        count = min(len(held_out), _HELD_OUT_EXAMPLES)
        index = np.linspace(0, len(held_out) - 1, count).round().astype(np.intp)
        with torch.no_grad():
            return self._loss(self._batch(held_out, index)).item()

    def write(self, base: Path, out: Path) -> None:
        """Write the candidate's files."""
        out.mkdir(parents=True, exist_ok=True)
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        text = json.dumps({**config, "use_peft": bool(self._adapters)}, indent=2) + "\n"
        write_atomically(out / "config.json", text.encode())
        for name in _COPIED:
            write_atomically(out / name, (base / name).read_bytes())
        if self._adapters:
            write_adapter(out, self._adapters, self._settings.lora, f"{base.parent.name}/{base.name}")
            return
        state = {
            name: tensor.detach().contiguous().to(self._dtypes[name])
            for name, tensor in self._model.state_dict().items()
        }
        write_atomically(out / _WEIGHTS, safetensors.torch.save(state, {"format": "pt"}))

    def _rate(self, step: int) -> float:
        s = self._settings
        falling = 0.5 * (1.0 + math.cos(math.pi * step / s.steps))
        return s.learning_rate * falling * min(1.0, (step + 1) / max(1, s.warm_up_steps))

    def _batch(self, examples: Examples, index: Index) -> Batch:
        processor, horizon = self._processor, self._model.config.chunk_size
        actions, counts = examples.chunks(index, horizon)
        state = torch.from_numpy(examples.states[examples.at[index]])
        words = [processor.tokenize(examples.instructions[i]) for i in index]
        picture = processor.picture(examples.pictures(index))
        return Batch(
            picture=picture.contiguous(memory_format=torch.channels_last),
            state=processor.state.normalise(state),
            words=torch.tensor(words),
            offsets=processor.offsets(torch.from_numpy(actions), state),
            counts=torch.from_numpy(counts),
        )

    def _loss(self, batch: Batch) -> Tensor:
        said = self._model(batch.picture, batch.state, batch.words)
        error = (said - batch.offsets).abs().mean(dim=-1)
        loss: Tensor = (error * batch.counts).sum() / batch.counts.sum()
        return loss


@dataclass(frozen=True)
class TinyVLATrainer:
    """The built-in trainer, for bundles of type ``tiny_vla``."""

    settings: Settings = field(default_factory=Settings)

    def describe(self) -> Mapping[str, Any]:
        """Return name and settings."""
        return {"trainer": TYPE, **asdict(self.settings)}

    def train(self, task: Task) -> Trained:
        """See :class:`vla_learning.training.trainer.Trainer`."""
        manifest = task.base.manifest
        if manifest.policy_type != TYPE or manifest.kind != "full":
            what = f"{manifest.name} {manifest.version} is {manifest.kind} and of type {manifest.policy_type}"
            text = f"{what}; this trainer needs a full {TYPE}"
            raise TrainingError("TRAINING_BASE", task.base.path, text)
        config = TinyVLAConfig.from_file(task.base.path / "config.json")
        dataset = open_dataset(task.dataset)
        _check_fits(dataset, config, manifest.action.rate_hz)
        others = [number for number in range(len(dataset.episodes)) if number not in set(task.episodes)]
        rest = all(channel.mode == "absolute" for channel in manifest.action.channels)
        examples, held_out = (
            examples_of(dataset, e, STATE, config.image_key, rest=rest) for e in (task.episodes, others)
        )
        standing = fine_tune(
            task.base.path, examples, task.out, task.work, self.settings, seed=task.seed, held_out=held_out,
            run={"base": task.base.digest, "episodes": list(task.episodes)}, quiet=task.quiet, plots=task.plots,
        )  # fmt: skip
        last = standing.losses[-_LAST_STEPS:]
        figures = {"steps": standing.step, "examples": len(examples), "loss": float(np.mean(last))}
        if standing.held_out:
            figures["held_out_loss"] = standing.held_out[-1][1]
        return Trained("adapter" if self.settings.method == "lora" else "full", figures)


def _check_fits(dataset: DataSet, config: TinyVLAConfig, rate_hz: float) -> None:
    """Refuse a data set of another robot, rate or picture."""
    wanted = {
        STATE: [config.state_dim],
        ACTION: [config.action_dim],
        config.image_key: [*config.image_shape, 3],
    }
    for name, shape in wanted.items():
        have = list(dataset.features.get(name, {}).get("shape", []))
        if have != shape:
            raise TrainingError(
                "TRAINING_DATA_SET", dataset.folder, f"{name} is {have or 'missing'}, the base has {shape}"
            )
    if dataset.fps != rate_hz:
        raise TrainingError("TRAINING_DATA_SET", dataset.folder, f"{dataset.fps:g} Hz, the base acts at {rate_hz:g} Hz")
