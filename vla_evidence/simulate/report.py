# SPDX-License-Identifier: Apache-2.0
"""What an exercise hands over: an answer in a sentence, tables, figures for machines, and plots."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_evidence.errors import EvidenceError
from vla_evidence.log.records import to_json

Plot = Callable[[Path], None]
"""Draws itself into a PNG file."""


def finite(value: Any) -> Any:
    """Return a value with None for every number that is not finite: JSON has no word for it."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Report:
    """Of one exercise.

    Attributes:
        name: of the exercise, and how its files begin.
        sentence: the answer.
        text: everything for people, the sentence first.
        figures: the same for machines; what is infinite is None.
        plots: by the name of their file.
    """

    name: str
    sentence: str
    text: str
    figures: dict[str, Any]
    plots: Mapping[str, Plot] = field(default_factory=dict)

    def write(self, folder: Path) -> list[Path]:
        """Write the plots and ``NAME.json`` into a folder, made if missing; return the files."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files = [folder / f"{self.name}_{plot}.png" for plot in self.plots]
            for path, draw in zip(files, self.plots.values(), strict=True):
                draw(path)
            document = folder / f"{self.name}.json"
            document.write_text(
                json.dumps(to_json(finite({"sentence": self.sentence, **self.figures})), indent=1) + "\n"
            )
        except OSError as e:
            raise EvidenceError("OUTPUT_NOT_WRITTEN", str(folder), e.strerror or str(e)) from e
        return [*files, document]
