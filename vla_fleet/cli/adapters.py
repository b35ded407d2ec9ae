# SPDX-License-Identifier: Apache-2.0
"""``vla-fleet adapters``: what robots learned apart becomes one adapter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vla_fleet.cli.common import LOCAL, JsonOption, KeyOption, ServerOption, err, out, table, utc
from vla_fleet.client import Client
from vla_fleet.errors import FleetError

if TYPE_CHECKING:
    from vla_checkpoint import Bundle
    from vla_learning.adapters.merging import Merge
    from vla_learning.adapters.reading import Client as Adapter

adapters_app = typer.Typer(no_args_is_help=True, help="LoRA adapters that robots trained.")

_EXAMPLES = "examples"
_AT_ONCE = 1000
_METHODS = "mean (weighted), geometric-median or krum (both stand some bad clients), or ffa (all share a frozen A)."


@adapters_app.callback()
def adapters() -> None:
    """LoRA adapters that robots trained."""


@adapters_app.command("list")
def list_adapters(
    name: Annotated[str, typer.Option(help="Only of this policy.")] = "",
    base_version: Annotated[str, typer.Option(help="Only on this version.")] = "",
    limit: Annotated[int, typer.Option(help="Show at most so many.", min=1, max=1000)] = 100,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """List adapters that robots trained on their own episodes and uploaded, the newest first."""
    with Client(server, key) as client:
        found = client.adapters(name, base_version, limit=limit)
    rows = [
        (
            a["sha256"][:12], a["robot"], f"{a['name']} {a['version']}", a["base_version"], str(a["examples"]),
            f"{a['size_bytes'] / 1e3:,.0f} kB", utc(a["received_s"]),
        )
        for a in found
    ]  # fmt: skip
    table(found, as_json, ("adapter", "robot", "version", "base", "examples", "size", "received"), rows)


@adapters_app.command()
def fetch(
    base: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="What the adapters were trained on.")],
    to: Annotated[Path, typer.Option("--out", help="Folder to create, with a folder for each robot.")],
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Fetch the newest adapter of each robot on a base. Then: vla-fleet adapters merge DIR/* --base …."""
    from vla_checkpoint import verify_bundle
    from vla_fleet.adapters.store import unpack

    name, _, version = base.partition("@")
    if not name or not version:
        raise typer.BadParameter("must be NAME@VERSION", param_hint="NAME@VERSION")
    if to.exists():
        raise FleetError("OUTPUT_NOT_WRITTEN", f"{to}: is there already; name another folder")
    with Client(server, key) as client:
        newest: dict[str, dict[str, Any]] = {}
        page = client.adapters(name, version, limit=_AT_ONCE)
        while page:
            newest = {a["robot"]: a for a in reversed(page)} | newest
            page = client.adapters(name, version, page[-1]["number"], _AT_ONCE)
        if not newest:
            raise FleetError("ADAPTER_NOT_FOUND", f"no robot has uploaded an adapter on {base}")
        for robot, adapter in sorted(newest.items()):
            folder = to / robot
            folder.mkdir(parents=True)
            archive = to / f"{robot}.tar"
            client.download_adapter(adapter["sha256"], archive)
            unpack(archive, folder)
            archive.unlink()
            verify_bundle(folder, expected_digest=adapter["digest"])
    rows = [(robot, a["version"], str(a["examples"]), str(to / robot)) for robot, a in sorted(newest.items())]
    table(list(newest.values()), as_json, ("robot", "version", "examples", "folder"), rows)


@adapters_app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="Adapter bundles, or PEFT folders.")],
    base: Annotated[Path, typer.Option(help="The bundle that all of them were trained on.")],
    to: Annotated[Path, typer.Option("--out", help="Bundle folder to create.")],
    method: Annotated[str, typer.Option(help=_METHODS)] = "mean",
    rank: Annotated[int | None, typer.Option(help="Recompress to this rank; default: exact.", min=1)] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="One for each adapter, such as its episodes (120,80,45); or 'examples': as many as each says it was trained on. "
            "Default: equal."
        ),
    ] = "",
    clip: Annotated[
        float | None, typer.Option(help="Shorten adapters to so many times the median adapter's norm.")
    ] = None,
    attackers: Annotated[int | None, typer.Option(help="krum: adapters that may be bad.", min=1)] = None,
    version: Annotated[str, typer.Option(help="Of the result; default: the next patch.")] = "",
    golden: Annotated[
        bool, typer.Option(help="Run the merged policy on golden observations, which robots then check it by.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Merge adapters into one bundle, with a certificate of what it is the sum of. Then: vla-fleet publish."""
    from vla_learning.adapters.merging import METHODS, Settings, example_counts
    from vla_learning.adapters.merging import merge as merge_adapters
    from vla_learning.adapters.reading import open_base, open_clients
    from vla_learning.adapters.writing import write_merge

    chosen = next((known for known in METHODS if known == method), None)
    if chosen is None:
        raise typer.BadParameter(f"must be one of {', '.join(METHODS)}", param_hint="--method")
    given = () if weights == _EXAMPLES else _numbers(weights)
    opened = open_base(base)
    clients = open_clients(folders, opened)
    if weights == _EXAMPLES:
        given = example_counts(clients)
    settings = Settings(chosen, given, rank, clip, attackers)
    merged = merge_adapters(clients, settings)
    replay = partial(_replay, opened, clients) if golden else None
    manifest, certificate = write_merge(merged, opened, to, version, replay)
    if as_json:
        made = {"name": manifest.name, "version": manifest.version, "digest": manifest.digest}
        out.print_json(data={**made, "certificate": certificate})
        return
    _show(merged, [client.name for client in clients])
    size = manifest.file("adapter_model.safetensors")
    out.print(
        f"\n{manifest.name} {manifest.version} ({manifest.digest[:12]}…) is in {to}: {len(merged.modules)} modules, "
        f"rank {merged.rank}, {(size.size if size else 0) / 1e6:.1f} MB",
        soft_wrap=True,
        markup=False,
    )
    out.print(f"relative error against the weighted sum: {certificate['exactness_error']:.1e}", soft_wrap=True)
    if certificate["tail_energy"]:
        text = f"recompression to rank {rank} left out {certificate['tail_energy']:.1%} of its norm"
        out.print(text + "; without --rank nothing is left out", soft_wrap=True)
    unknown = [client.name for client in clients if client.bundle is None]
    if unknown:
        text = f"their base is known by the tensors' shapes only (no manifest): {', '.join(unknown)}"
        err.print(text, soft_wrap=True, markup=False)


def _replay(base: Bundle, clients: Sequence[Adapter], folder: Path, merged: Bundle) -> None:
    """Write what the merged policy answers to golden observations; say why if that is impossible here."""
    from vla_learning.errors import LearningError
    from vla_learning.running import load_policy
    from vla_learning.training.sealing import replay_golden

    try:
        load_policy(base)
    except (ImportError, LearningError) as e:
        why = f"the policy cannot run here ({e})"
    else:
        others = [client.bundle for client in clients if client.bundle is not None]
        if replay_golden(folder, merged, base, others):
            return
        why = "neither the base nor an adapter has any"
    err.print(f"the merge has no golden observations: {why}", soft_wrap=True, markup=False)


def _show(merged: Merge, order: list[str]) -> None:
    rows = [
        (
            standing.client.name, f"{standing.given:.3f}", f"{standing.norm:.4g}",
            "" if standing.clip == 1 else f"×{standing.clip:.3g}", f"{standing.weight:.3f}" if standing.weight else "left out",
        )
        for standing in sorted(merged.clients, key=lambda standing: order.index(standing.client.name))
    ]  # fmt: skip
    table(None, False, ("adapter", "weight", "norm", "clipped", "counts"), rows)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as e:
        raise typer.BadParameter(f"{text!r}: write numbers with commas between them", param_hint="--weights") from e
