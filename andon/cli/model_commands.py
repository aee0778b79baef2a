"""``andon models``: what the model store holds, where a version came from, which one a service uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.tree import Tree

from andon.cli.endpoints import find_target, store_location
from andon.cli.options import HomeOption, StoreOption, TimeoutOption
from andon.cli.output import JsonFlag, messages, print_json, print_table, results
from andon.client.policy import PolicyClient
from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.client.values import ModelInfo
from andon.errors import InvalidArgumentError
from andon.modeling.store import LineageNode, ModelStore

app = typer.Typer(help="Look into the model store.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help='"policy/12" or "policy@stable".')]


@app.command("list")
def list_models(
    family: Annotated[str | None, typer.Argument(help='Only this family, for example "policy".')] = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List the stored versions and their aliases."""
    models = _open(store, home)
    stored_models = models.list(family)
    names: dict[str, list[str]] = {}
    for alias, version in models.aliases().items():
        names.setdefault(str(version), []).append(alias)
    if as_json:
        print_json(
            [
                {
                    **stored.manifest.to_dict(),
                    "location": stored.location,
                    "aliases": names.get(str(stored.version), []),
                }
                for stored in stored_models
            ]
        )
        return
    print_table(
        models.location,
        ["model", "aliases", "kind", "made", "run", ">step"],
        [
            (
                stored.version,
                ", ".join(names.get(str(stored.version), [])),
                stored.manifest.draft.kind,
                stored.manifest.created_time,
                stored.manifest.draft.run_id,
                stored.manifest.draft.step,
            )
            for stored in stored_models
        ],
    )


@app.command()
def show(
    name: NameArgument, store: StoreOption = None, home: HomeOption = None, as_json: JsonFlag = False
) -> None:
    """Show one version's manifest."""
    stored = _open(store, home).resolve(name)
    manifest = {**stored.manifest.to_dict(), "location": stored.location}
    if as_json:
        print_json(manifest)
    else:
        results().print_json(data=_texts(manifest))


@app.command()
def lineage(
    name: NameArgument, store: StoreOption = None, home: HomeOption = None, as_json: JsonFlag = False
) -> None:
    """Show what a version was made from, back to the data and the labels."""
    node = _open(store, home).lineage(name)
    if as_json:
        print_json(_lineage_values(node))
    else:
        results().print(_lineage_tree(node))


@app.command()
def alias(
    alias_name: Annotated[str, typer.Argument(metavar="ALIAS", help='For example "policy@stable".')],
    name: NameArgument,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make an alias name a version."""
    stored = _open(store, home).set_alias(alias_name, name)
    if as_json:
        print_json({"alias": alias_name, "model": stored.version})
    else:
        results().print(f"{alias_name} is {stored.version}")


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="One version; all of them when left out.")] = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Read every file again and compare it with what was published."""
    models = _open(store, home)
    chosen = models.list() if name is None else [models.resolve(name)]
    with messages().status("reading ...") as status:
        for stored in chosen:
            status.update(f"reading {stored.version} ...")
            models.verify(stored)
    if as_json:
        print_json({"verified": [stored.version for stored in chosen]})
    else:
        results().print(f"{len(chosen)} versions are as they were published")


@app.command()
def load(
    service: Annotated[str, typer.Argument(help="policy, reference or reward.")],
    name: NameArgument,
    target: Annotated[str | None, typer.Option("--target", help="Address of the service.")] = None,
    home: HomeOption = None,
    timeout_s: TimeoutOption = 600.0,
    as_json: JsonFlag = False,
) -> None:
    """Make a running service use a version."""
    if service not in ("policy", "reference", "reward"):
        raise InvalidArgumentError(
            f"{service!r} serves no model; choose policy, reference or reward", reason="INVALID_SERVICE"
        )
    address = find_target(service, target, home=home)
    with messages().status(f"loading {name} ..."):
        info = _load(service, address, name, timeout_s)
    if as_json:
        print_json(info)
    else:
        results().print(f"{service} serves {info.model} ({info.parameter_count:,} parameters, {info.device})")


def _load(service: str, address: str, name: str, timeout_s: float) -> ModelInfo:
    if service == "policy":
        with PolicyClient(address) as policy:
            return policy.load_model(name, timeout_s=timeout_s)
    if service == "reference":
        with ReferenceClient(address) as reference:
            return reference.load_model(name, timeout_s=timeout_s)
    with RewardClient(address) as reward:
        return reward.load_model(name, timeout_s=timeout_s).info


def _open(store: str | None, home: Path | None) -> ModelStore:
    return ModelStore(store_location(store, home=home))


def _texts(manifest: dict[str, object]) -> dict[str, object]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in manifest.items()}


def _lineage_tree(node: LineageNode) -> Tree:
    role = f"{node.role}: " if node.role else ""
    where = "" if node.stored else " [dim](not in the store)[/]"
    run = f" [dim]run {escape(node.run_id)}[/]" if node.run_id else ""
    tree = Tree(f"{role}[bold]{escape(str(node.version))}[/]{run}{where}")
    for use in node.lineage.data:
        tree.add(f"{use.kind}: {escape(use.uri)}, {use.count:,} records")
    for parent in node.parents:
        tree.children.append(_lineage_tree(parent))
    return tree


def _lineage_values(node: LineageNode) -> dict[str, object]:
    return {
        "role": node.role,
        "model": node.version,
        "weights_sha256": node.version.weights_sha256,
        "stored": node.stored,
        "run_id": node.run_id,
        "data": node.lineage.data,
        "parents": [_lineage_values(parent) for parent in node.parents],
    }
