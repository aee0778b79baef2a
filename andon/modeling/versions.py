"""Decides how a model version is named and how a name that a person or a caller wrote is read.

Used by the store, the services and the command line. A name is one of three things: ``policy/12`` (a
version), ``policy@stable`` (an alias), or anything else, which is left to Hugging Face as a folder or the
name of a public model. Whether the thing named exists is not decided here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from andon.errors import InvalidArgumentError

RESERVED_FOLDERS = frozenset({"aliases", "counters", "reservations"})  # the store's own, beside the families
_FAMILY = r"[a-z][a-z0-9_-]{0,63}"
_VERSION_NAME = re.compile(rf"({_FAMILY})/0*([0-9]{{1,12}})")
_ALIAS_NAME = re.compile(rf"({_FAMILY})@([a-z0-9][a-z0-9_.-]{{0,63}})")
# With a longer name, or part of one between slashes, a file system fails instead of finding nothing.
MAX_NAME_CHARS, MAX_PART_BYTES = 1024, 255


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One immutable set of weights: the ``version``-th, counted from 1, of a family.

    ``weights_sha256`` is empty where only the name is known. A model that comes from outside the store has
    its folder or public name as family, and version 0.
    """

    family: str
    version: int
    weights_sha256: str = ""

    def __str__(self) -> str:
        return f"{self.family}/{self.version}"

    def is_same_name(self, other: ModelVersion) -> bool:
        """Whether family and number agree, whatever is known of the weights."""
        return self.family == other.family and self.version == other.version


@dataclass(frozen=True, slots=True)
class ModelAlias:
    """A movable name, such as ``policy@stable``."""

    family: str
    alias: str

    def __str__(self) -> str:
        return f"{self.family}@{self.alias}"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A folder in Hugging Face format, or the name of a public model."""

    source: str

    def __str__(self) -> str:
        return self.source


ModelName = ModelVersion | ModelAlias | ModelSource


def parse_model_name(name: str) -> ModelName:
    """Read ``policy/12``, ``policy@stable``, a folder, or a Hugging Face name.

    Raises InvalidArgumentError INVALID_MODEL_NAME for an empty name, one that no file could have, version 0,
    or a broken alias.
    """
    too_long = len(name) > MAX_NAME_CHARS or any(
        len(os.fsencode(part)) > MAX_PART_BYTES for part in name.split("/")
    )
    if too_long:
        raise InvalidArgumentError(
            f"{name[:40]!r}... is too long for the name of a model", reason="INVALID_MODEL_NAME"
        )
    if not name or name != name.strip() or "\0" in name:
        raise InvalidArgumentError(
            f"{name!r} is not the name of a model", reason="INVALID_MODEL_NAME", name=name
        )
    if match := _VERSION_NAME.fullmatch(name):
        version = int(match[2])
        if version == 0:
            raise InvalidArgumentError(
                f"{name!r}: versions count from 1", reason="INVALID_MODEL_NAME", name=name
            )
        return ModelVersion(match[1], version)
    if match := _ALIAS_NAME.fullmatch(name):
        return ModelAlias(match[1], match[2])
    if "@" in name and "/" not in name:
        raise InvalidArgumentError(
            f"{name!r} is not an alias: write family@alias in lower case",
            reason="INVALID_MODEL_NAME",
            name=name,
        )
    return ModelSource(name)


def is_family(name: str) -> bool:
    """Whether ``name`` may be the name of a family."""
    return re.fullmatch(_FAMILY, name) is not None and name not in RESERVED_FOLDERS


def check_family(family: str) -> str:
    """Return ``family`` when it may be the name of a family; raise INVALID_MODEL_NAME otherwise."""
    if not is_family(family):
        raise InvalidArgumentError(
            f"{family!r} cannot name a family: lower-case letters, digits, '_' and '-' only, a letter first",
            reason="INVALID_MODEL_NAME",
            name=family,
        )
    return family
