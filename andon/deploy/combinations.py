"""Decides what "all" means: every overlay, every example beside the smallest overlay, the base with every
component, with every pair, and with all that go together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from andon.deploy.errors import RequirementsError
from andon.deploy.kustomize import Manifest, render, render_together
from andon.deploy.requirements import FILE_NAME, Requirements

BASE = "base"
NAMESPACE = "andon"  # which the base names; components leave it to the overlay
EXAMPLES_BESIDE = "overlays/local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """Something that could be applied."""

    name: str
    folders: tuple[Path, ...]  # applied one beside the other
    components: tuple[Path, ...] = ()

    def render(self, *, kubectl: str) -> list[Manifest]:
        """Its manifests. Raises RenderError."""
        if self.components:
            return render_together(self.folders, self.components, namespace=NAMESPACE, kubectl=kubectl)
        return [manifest for folder in self.folders for manifest in render(folder, kubectl=kubectl)]


def find_root(folder: Path) -> Path:
    """The folder with base, components and overlays. Raises RequirementsError where there is none."""
    if (folder / FILE_NAME).is_file() and (folder / BASE).is_dir():
        return folder
    raise RequirementsError(
        f"{folder} is not the folder with base, components, overlays and {FILE_NAME}", folder=folder
    )


def all_combinations(root: Path, requirements: Requirements) -> Iterator[Combination]:
    """All that is checked. Raises RequirementsError when components and their rules are not the same."""
    rules = requirements.components
    found = {path.parent.name for path in (root / "components").glob("*/kustomization.yaml")}
    if found != set(rules):
        odd = ", ".join(sorted(found ^ set(rules)))
        raise RequirementsError(f"{FILE_NAME} and the folder components do not agree about: {odd}")
    yield Combination(name=BASE, folders=(root / BASE,))
    for path in sorted((root / "overlays").glob("*/kustomization.yaml")):
        yield Combination(name=f"overlays/{path.parent.name}", folders=(path.parent,))
    for path in sorted((root / "examples").glob("*/kustomization.yaml")):
        yield Combination(
            name=f"{EXAMPLES_BESIDE} and examples/{path.parent.name}",
            folders=(root / EXAMPLES_BESIDE, path.parent),
        )
    for names in component_sets(requirements):
        yield Combination(
            name=f"{BASE} with {', '.join(names)}",
            folders=(root / BASE,),
            components=tuple(root / "components" / name for name in names),
        )


def component_sets(requirements: Requirements) -> Iterator[tuple[str, ...]]:
    """Each component, each pair, and as many as go together, completed by what they need; each set once."""
    rules = requirements.components
    seen: set[tuple[str, ...]] = set()
    names = list(rules)
    wanted: list[Sequence[str]] = [(name,) for name in names]
    wanted += list(combinations(names, 2))
    wanted += [_as_many_as_fit(requirements, first) for first in names]
    for start in wanted:
        whole = completed(requirements, start)
        if whole is not None and whole not in seen:
            seen.add(whole)
            yield whole


def completed(requirements: Requirements, start: Sequence[str]) -> tuple[str, ...] | None:
    """The components with all that they need and that joins them, in order; None where some exclude some."""
    rules = requirements.components
    chosen = set(start)
    while True:
        more = {needed for name in chosen for needed in rules[name].needs}
        more |= {name for name, rule in rules.items() if rule.joins and chosen.issuperset(rule.joins)}
        if more <= chosen:
            break
        chosen |= more
    if any(excluded in chosen for name in chosen for excluded in rules[name].excludes):
        return None
    return tuple(name for name in rules if name in chosen)


def _as_many_as_fit(requirements: Requirements, first: str) -> tuple[str, ...]:
    chosen: tuple[str, ...] = completed(requirements, (first,)) or ()
    for name in requirements.components:
        chosen = completed(requirements, (*chosen, name)) or chosen
    return chosen
