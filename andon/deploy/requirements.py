"""Decides what manifests may expect of a cluster: what ``requirements.yaml`` names.

The file lies beside the manifests. Whoever keeps an overlay elsewhere puts one into a folder above it. It
also says which components go together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from andon.deploy.errors import RequirementsError

FILE_NAME = "requirements.yaml"


class KeyedRequirement(BaseModel):
    """A Secret or a ConfigMap that somebody makes before the manifests are applied."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[str, ...]
    what: str  # for people who have to make it


class ComponentRules(BaseModel):
    """With which other components one goes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs: tuple[str, ...] = ()  # it cannot be applied without them
    joins: tuple[str, ...] = ()  # an overlay with all of these must have it, too
    excludes: tuple[str, ...] = ()  # it cannot be applied with any of them


class Requirements(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    secrets: Mapping[str, KeyedRequirement] = {}
    configMaps: Mapping[str, KeyedRequirement] = {}  # noqa: N815 - spelled as Kubernetes spells it
    namespaces: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    components: Mapping[str, ComponentRules] = {}  # in the order in which an overlay names them


def read_requirements(path: Path) -> Requirements:
    """The file's content. Raises RequirementsError."""
    try:
        return Requirements.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (ValidationError, yaml.YAMLError) as error:
        raise RequirementsError(f"{path}: {error}", path=path) from error


def find_requirements(folder: Path) -> Requirements:
    """The file of the nearest folder above; nothing is required where there is none."""
    for candidate in (folder.resolve(), *folder.resolve().parents):
        if (candidate / FILE_NAME).is_file():
            return read_requirements(candidate / FILE_NAME)
    return Requirements()
