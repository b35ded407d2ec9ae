# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet simulate``: the fleet lesson's exercises on learning, with policies that are really trained and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla_fleet.cli.common import JsonOption, out

if TYPE_CHECKING:
    from vla_evidence.simulate.report import Report

simulate_app = typer.Typer(
    no_args_is_help=True, help="Answer the lesson's exercises with a sentence, a table and plots."
)
OutOption = Annotated[Path, typer.Option("--out", help="Folder for plots and figures.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the simulation.", min=0)]
QuickOption = Annotated[bool, typer.Option("--quick", help="A smaller one, in about two minutes.")]
JobsOption = Annotated[int, typer.Option("--jobs", help="Processes at a time; 0 = one a core.", min=0)]
FOLDER = Path("build/learning")


@simulate_app.command()
def flywheel(
    weeks: Annotated[int, typer.Option(help="How long.", min=1, max=52)] = 10,
    repeats: Annotated[int, typer.Option(help="Fleets of each kind, for the error bars.", min=1, max=50)] = 3,
    quick: QuickOption = False,
    seed: SeedOption = 0,
    jobs: JobsOption = 0,
    folder: OutOption = FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Show how quickly weekly corrections compound, with and without replay of old episodes."""
    from vla_evidence.analysis import no_bar, tqdm_bar
    from vla_learning.simulate import flywheel as exercise
    from vla_learning.simulate.trajectory import TrajectorySettings

    settings = exercise.Settings(TrajectorySettings(weeks=weeks, seed=seed), repeats, jobs)
    report = exercise.run(settings.quick() if quick else settings, no_bar if as_json else tqdm_bar)
    show_report(report, folder, as_json)


@simulate_app.command()
def federated(
    quick: QuickOption = False,
    seed: SeedOption = 0,
    jobs: JobsOption = 0,
    folder: OutOption = FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Compare merged adapters with averaged factors and with training on everybody's episodes: success and bytes."""
    from vla_evidence.analysis import no_bar, tqdm_bar
    from vla_learning.simulate import federated as exercise

    settings = exercise.Settings(seed=seed, jobs=jobs)
    report = exercise.run(settings.quick() if quick else settings, no_bar if as_json else tqdm_bar)
    show_report(report, folder, as_json)


def show_report(report: Report, folder: Path, as_json: bool) -> None:
    """Write an exercise's plots and figures, and print its answer."""
    files = [str(path) for path in report.write(folder)]
    if as_json:
        out.print_json(json.dumps({"sentence": report.sentence, **report.figures, "files": files}))
        return
    out.print(report.text, markup=False, soft_wrap=True)
    out.print(f"\nwritten: {', '.join(files)}", markup=False, soft_wrap=True)
