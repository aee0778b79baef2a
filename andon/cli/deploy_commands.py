"""``andon deploy``: render the Kubernetes manifests, and check them without a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from andon.cli.exit_codes import EXIT_FAILED, EXIT_INVALID
from andon.cli.output import JsonFlag, messages, print_json, print_table, results
from andon.errors import FailedPreconditionError

if TYPE_CHECKING:
    from andon.deploy.combinations import Combination
    from andon.deploy.findings import Finding
    from andon.deploy.requirements import Requirements

app = typer.Typer(help="Render and check the Kubernetes manifests.", no_args_is_help=True)

DEFAULT_ROOT = Path("deploy/k8s")

RootOption = Annotated[
    Path, typer.Option("--root", help="The folder with base, components, overlays and requirements.yaml.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedCombination:
    """What was checked, and what was found."""

    name: str
    objects: int
    findings: list[Finding]


@app.command("render")
def render_overlay(
    overlay: Annotated[str, typer.Argument(help="An overlay's name or folder.")],
    root: RootOption = DEFAULT_ROOT,
) -> None:
    """Print an overlay's manifests, as `kubectl apply -k` would apply them."""
    from andon.deploy.kustomize import find_kubectl, render_text

    typer.echo(render_text(_folder(overlay, root), kubectl=find_kubectl()), nl=False)


@app.command()
def check(
    overlays: Annotated[
        list[str] | None,
        typer.Argument(help="Overlays' names or folders; several count as one."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Check every overlay and every combination of components.")
    ] = False,
    root: RootOption = DEFAULT_ROOT,
    kubernetes: Annotated[
        list[str] | None,
        typer.Option("--kubernetes", metavar="VERSION", help="Check against this version; may be repeated."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check manifests without a cluster: shapes, names, ports, selectors, settings, network, security.
    The exit code is 1 where something is wrong.
    """
    if bool(overlays) == everything:
        messages().print("name overlays, or say --all", highlight=False)
        raise typer.Exit(EXIT_INVALID)
    _require_validators()
    from andon.deploy.check import check as check_manifests
    from andon.deploy.kustomize import find_kubectl
    from andon.deploy.schemas import DEFAULT_VERSIONS

    kubectl = find_kubectl()
    chosen, requirements = _combinations(overlays or [], root)
    done = []
    with messages().status("checking ...") as status:
        for combination in chosen:
            status.update(f"checking {combination.name} ...")
            manifests = combination.render(kubectl=kubectl)
            findings = check_manifests(manifests, requirements, versions=kubernetes or DEFAULT_VERSIONS)
            done.append(CheckedCombination(name=combination.name, objects=len(manifests), findings=findings))
    _show(done, as_json=as_json)
    if any(entry.findings for entry in done):
        raise typer.Exit(EXIT_FAILED)


def _combinations(overlays: list[str], root: Path) -> tuple[list[Combination], Requirements]:
    from andon.deploy.combinations import Combination, all_combinations, find_root
    from andon.deploy.requirements import find_requirements

    if not overlays:
        requirements = find_requirements(find_root(root))
        return list(all_combinations(root, requirements)), requirements
    folders = tuple(_folder(overlay, root) for overlay in overlays)
    return [Combination(name=" and ".join(overlays), folders=folders)], find_requirements(folders[0])


def _folder(overlay: str, root: Path) -> Path:
    """A folder of that path, or else the overlay or the other part of ``root`` of that name."""
    candidates = (Path(overlay), root / "overlays" / overlay, root / overlay)
    return next((path for path in candidates if (path / "kustomization.yaml").is_file()), candidates[0])


def _require_validators() -> None:
    try:
        import jsonschema  # noqa: F401 - only whether it is there
        import kubernetes_validate  # noqa: F401
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            f"{error.name} is not installed: pip install 'andon[deploy]'", reason="EXTRA_MISSING"
        ) from error


def _show(done: list[CheckedCombination], *, as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    places: dict[Finding, list[str]] = {}
    for entry in done:
        for finding in entry.findings:
            places.setdefault(finding, []).append(entry.name)
    if places:
        rows = [
            (finding.rule, finding.where, finding.message, _names(found_in))
            for finding, found_in in sorted(places.items())
        ]
        print_table(None, ["rule", "object", "what is wrong", "found in"], rows)
    bad = sum(bool(entry.findings) for entry in done)
    results().print(
        f"{len(done)} checked, {bad} with mistakes" if bad else f"{len(done)} checked, no mistakes",
        highlight=False,
    )


def _names(found_in: list[str]) -> str:
    return found_in[0] if len(found_in) == 1 else f"{found_in[0]} and {len(found_in) - 1} more"
