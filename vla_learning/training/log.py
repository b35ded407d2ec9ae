# SPDX-License-Identifier: Apache-2.0
"""How a training run goes: a progress bar where somebody looks, a plot of the loss, event files if TensorBoard is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

_SMOOTHED_OVER = 20


class TrainingLog:
    """Takes the loss of each step; closes its files with the ``with``.

    Args:
        folder: for the event files.
        steps: of the whole run.
        done: steps that an earlier call has done.
        quiet: show no bar; without a terminal none is shown anyway.
        events: write event files.
    """

    def __init__(self, folder: Path, steps: int, done: int, *, quiet: bool, events: bool = True) -> None:
        from tqdm import tqdm

        hidden = quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=done, desc="training", unit="step", file=sys.stderr, disable=hidden)
        self._events = _event_writer(folder, done) if events else None

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """Note one optimiser step."""
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._bar.update()
        if self._events is not None:
            self._events.add_scalar("loss/training", loss, step)
            self._events.add_scalar("learning_rate", learning_rate, step)

    def held_out(self, step: int, loss: float) -> None:
        """Note the loss on examples that are not learned from."""
        if self._events is not None:
            self._events.add_scalar("loss/held_out", loss, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._events is not None:
            self._events.close()


def _event_writer(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # TensorBoard is optional
        return None
    return SummaryWriter(str(folder), purge_step=done)


def plot_losses(path: Path, losses: Sequence[float], held_out: Sequence[tuple[int, float]]) -> None:
    """Draw the loss of each step, its running mean, and the loss on held-out examples, into a PNG; without matplotlib nothing.

    Args:
        path: of the PNG.
        losses: of every step.
        held_out: (step, loss).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:  # a plot is not worth a run's failure
        return
    figure = Figure(figsize=(7.5, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25)
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color="#0072B2", alpha=0.3, linewidth=0.8, label="each step")
    axes.plot(steps, list(_smoothed(losses)), color="#0072B2", linewidth=1.8, label=f"mean of {_SMOOTHED_OVER} steps")
    if held_out:
        at, values = zip(*held_out, strict=True)
        axes.plot(at, values, "o-", color="#D55E00", linewidth=1.4, markersize=3, label="held-out episodes")
    axes.set(xlabel="optimiser step", ylabel="mean error of an action [standard deviations]", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path)


def _smoothed(losses: Sequence[float]) -> Iterator[float]:
    total = 0.0
    for i, loss in enumerate(losses):
        total += loss - (losses[i - _SMOOTHED_OVER] if i >= _SMOOTHED_OVER else 0.0)
        yield total / min(i + 1, _SMOOTHED_OVER)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch use so many threads inside the block: part of what a seed reproduces."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
