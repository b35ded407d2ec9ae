# SPDX-License-Identifier: Apache-2.0
"""Commands about models: publish, list, aliases, retire, collect garbage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_fleet.cli.common import LOCAL, JsonOption, KeyOption, ServerOption, byte_bar, show, table, utc
from vla_fleet.client import Client

app = typer.Typer()
SignOption = Annotated[
    Path | None,
    typer.Option(help="Sign here, with the keys of this folder, if the server has no key of targets; docs/trust.md."),
]


@app.command()
def publish(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    version: Annotated[str, typer.Option(help="Publish it under this version instead of the manifest's.")] = "",
    bump: Annotated[str, typer.Option(help="'auto': the least step over the highest published version.")] = "",
    alias: Annotated[str, typer.Option(help="Let this alias point to it.")] = "",
    parent: Annotated[str, typer.Option(help="NAME@VERSION that it was trained from.")] = "",
    method: Annotated[str, typer.Option(help="How: fine_tune, adapter or merge (a patch), or any other word.")] = "",
    data_set: Annotated[str, typer.Option(help="Data that it was trained on.")] = "",
    training_run: Annotated[str, typer.Option(help="The training run.")] = "",
    git_commit: Annotated[str, typer.Option(help="Commit of the training code.")] = "",
    delta_from: Annotated[
        list[str] | None, typer.Option(help="NAME@VERSION or NAME@ALIAS that robots have: they fetch the difference.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="NAME=NUMBER; may be repeated.")] = None,
    sign_with: SignOption = None,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle, upload it and publish it."""
    if bump not in ("", "auto"):
        raise typer.BadParameter("must be 'auto'", param_hint="--bump")
    given = {"method": method, "data_set": data_set, "training_run": training_run, "git_commit": git_commit}
    lineage: dict[str, Any] = {name: value for name, value in given.items() if value}
    if metric:
        lineage["metrics"] = dict(_metric(text) for text in metric)
    with Client(server, key) as client, byte_bar(bundle.name) as progress:
        found = client.publish(
            bundle, version=version, bump=bump, alias=alias, parent=parent, lineage=lineage,  # type: ignore[arg-type]
            delta_from=delta_from or (), sign_with=sign_with or "", progress=progress,
        )  # fmt: skip
    lines = [f"{found['name']} {found['version']} is published ({found['digest'][:12]}…)"]
    for delta in found.get("deltas", ()):
        sizes = f"{delta['bytes'] / 1e6:.1f} MB in place of {delta['instead_of'] / 1e6:.1f}"
        lines.append(f"robots that have {delta['against']} fetch {sizes}")
    show(found, as_json, "\n".join(lines))


@app.command()
def models(
    name: Annotated[str, typer.Argument(help="Of one model.")] = "",
    lineage: Annotated[bool, typer.Option("--lineage", help="Where each version of NAME comes from.")] = False,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """List what was published."""
    if lineage and not name:
        raise typer.BadParameter("name the model: vla-fleet models NAME --lineage", param_hint="--lineage")
    with Client(server, key) as client:
        found = client.lineage(name) if lineage else client.models(name)
    if lineage:
        origins = [(v["version"], v["parent"], _text(v["lineage"])) for v in found]
        table(found, as_json, ("version", "parent", "lineage"), origins)
        return
    rows = [
        (
            m["name"], m["version"], " ".join(m["aliases"]), f"{m['size_bytes'] / 1e6:.1f} MB", m["published_by"],
            utc(m["published_s"]), "retired" if m["retired_s"] else "",
        )
        for m in found
    ]  # fmt: skip
    table(found, as_json, ("model", "version", "aliases", "size", "by", "published", ""), rows)


@app.command()
def alias(
    name: str,
    alias: Annotated[str, typer.Argument(help="For example champion.")] = "",
    version: Annotated[str, typer.Argument(help="Where it points from now on; none: show who moved it.")] = "",
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let NAME@ALIAS mean a version; without VERSION show who moved it from where to where, and why."""
    with Client(server, key) as client:
        if version:
            client.set_alias(name, alias, version, reason)
        moves = client.alias_moves(name, alias)
    if version:
        show(moves[0], as_json, f"{name}@{alias} is {version}")
        return
    rows = [(utc(m["time_s"]), m["who"], m["alias"], m["before"], m["version"], m["reason"]) for m in moves]
    table(moves, as_json, ("time", "who", "alias", "from", "to", "why"), rows)


@app.command()
def retire(
    model: Annotated[str, typer.Argument(help="NAME@VERSION.")],
    sign_with: SignOption = None,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Take a version out of use; robots that hold it keep it. Publishing it again brings it back."""
    name, mark, version = model.partition("@")
    if not mark:
        raise typer.BadParameter(f"{model!r}: write NAME@VERSION")
    with Client(server, key) as client:
        found = client.retire(name, version, sign_with or "")
    show(found, as_json, f"{name} {version} is retired; its files go with `vla-fleet gc` once no robot holds it")


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    server: ServerOption = LOCAL,
    key: KeyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Remove files that no version, robot or upload needs."""
    with Client(server, key) as client:
        found = client.collect_garbage(dry_run=dry_run)
    verb = "would go" if dry_run else "are gone"
    held = f"; robots or open orders still hold {', '.join(found['held'])}" if found["held"] else ""
    show(found, as_json, f"{found['blobs']} files ({found['size_bytes'] / 1e6:.1f} MB) {verb}{held}")


def _metric(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError as e:
        raise typer.BadParameter(f"{text!r}: write NAME=NUMBER", param_hint="--metric") from e


def _text(lineage: dict[str, Any]) -> str:
    return " ".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in lineage.items() if k != "parent")
