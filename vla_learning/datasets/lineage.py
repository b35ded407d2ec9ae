# SPDX-License-Identifier: Apache-2.0
"""``meta/vla_ota.json``: where a data set comes from, and enough to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_learning.datasets.mix import Mix
from vla_learning.datasets.selection import BuildSettings, Choice, Source, Stratum
from vla_learning.episodes.summary import summarize
from vla_learning.errors import DataSetError

_SCHEMA = 1
_ASKED = ("replay_share", "correction_weight", "replay_frames", "keep_failures", "file_bytes")


def lineage_of(choice: Choice, settings: BuildSettings, mix: Mix, interface: str) -> dict[str, Any]:
    """Return the lineage of a data set; it holds no time and no path, so that it is the same when it is built again."""
    return {
        "schema": _SCHEMA,
        "seed": settings.seed,
        "new": settings.new_rule,
        "interface": interface,
        "asked": {name: getattr(settings, name) for name in _ASKED},
        "mix": mix.as_json(),
        "strata": [
            {
                "instruction": stratum.instruction,
                "success": stratum.success,
                "episodes": stratum.episodes,
                "frames": stratum.frames,
                "chosen_episodes": len(stratum.chosen),
                "chosen_frames": stratum.chosen_frames,
            }
            for stratum in choice.strata
        ],
        "left_out": dict(choice.left_out),
        "episodes": [_entry(source) for source in (*choice.replay, *choice.new)],
    }


def _entry(source: Source) -> dict[str, Any]:
    episode = source.episode
    return {
        "sha256": episode.sha256,
        "episode_id": episode.episode_id,
        "robot": episode.robot,
        "policy": episode.policy,
        "version": episode.version,
        "success": episode.success,
        "steps": episode.steps,
        "corrections": episode.corrections,
        "part": "new" if source.new else "replay",
        "number": source.number,
    }


# -- and back ---------------------------------------------------------------------------------------------------------------


def settings_of(lineage: Mapping[str, Any]) -> BuildSettings:
    """Return the settings of a data set; DATASET_LINEAGE if this is no lineage of this release."""
    if lineage.get("schema") != _SCHEMA:
        raise DataSetError("DATASET_LINEAGE", "the lineage", f"schema {lineage.get('schema')!r} is not {_SCHEMA}")
    try:
        return BuildSettings(seed=lineage["seed"], new_rule=lineage["new"], **lineage["asked"])
    except (KeyError, TypeError) as e:
        raise _malformed(e) from e


def files_of(lineage: Mapping[str, Any], folder: Path) -> dict[Path, str]:
    """Return where each episode is, or is to be, and its SHA-256."""
    try:
        digests = [str(entry["sha256"]) for entry in lineage["episodes"]]
    except (KeyError, TypeError) as e:
        raise _malformed(e) from e
    if not digests or any(len(digest) != 64 or set(digest) - set("0123456789abcdef") for digest in digests):
        raise DataSetError("DATASET_LINEAGE", "the lineage", "an episode has no SHA-256, or there is none")
    return {folder / f"{digest}.mcap": digest for digest in digests}


def choice_of(lineage: Mapping[str, Any], folder: Path) -> Choice:
    """Return what went into a data set, from its lineage and its episodes."""
    try:
        sources = [_source(entry, folder) for entry in lineage["episodes"]]
        strata = tuple(
            Stratum(s["instruction"], s["success"], s["episodes"], s["frames"], _chosen(sources, s))
            for s in lineage["strata"]
        )
        return Choice(tuple(source for source in sources if source.new), strata, lineage["left_out"])
    except (KeyError, TypeError) as e:
        raise _malformed(e) from e


def _source(entry: Mapping[str, Any], folder: Path) -> Source:
    path = folder / f"{entry['sha256']}.mcap"
    episode = replace(summarize(path), robot=entry["robot"])  # who it was is the server's word, not the file's
    if episode.sha256 != entry["sha256"]:
        raise DataSetError(
            "DATASET_EPISODE_CHANGED", path, "its bytes are not those of its name; remove it and fetch it again"
        )
    return Source(episode, path, entry["number"], entry["part"] == "new")


def _chosen(sources: list[Source], stratum: Mapping[str, Any]) -> tuple[Source, ...]:
    key = stratum["instruction"], stratum["success"]
    return tuple(source for source in sources if not source.new and source.stratum == key)


def _malformed(error: Exception) -> DataSetError:
    return DataSetError("DATASET_LINEAGE", "the lineage", f"malformed: {type(error).__name__} {error}")
