"""Decides what is written down about a stored model: where it came from and what its files are.

``ManifestDraft`` is what a training stage knows; the store adds the version, the time and the digests and
writes ``manifest.json``. Reading is strict, so that a manifest of a later format is refused instead of half
understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

from andon.errors import DataLossError
from andon.modeling.normalization import Normalization
from andon.modeling.versions import ModelVersion

FORMAT = 1  # of manifest.json
ModelKind = Literal["causal_lm", "reward_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A model that this one was made with; ``role`` says how, for example "base", "reward" or "reference"."""

    role: str
    model: ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class DataUse:
    """Records that were learned from; with kind "comparisons" these are people's decisions."""

    kind: str  # "documents", "comparisons" or "prompts"
    uri: str  # where they were read: a file, "builtin:train", "hf:name", "labeling:batch"
    count: int
    sha256: str = ""  # over the records as read, where the reader computed it
    first_id: str = ""
    last_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What a version was made from."""

    parents: tuple[Parent, ...] = ()
    data: tuple[DataUse, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestDraft:
    """What the maker of a model says about it."""

    kind: ModelKind
    parents: tuple[Parent, ...] = ()
    data: tuple[DataUse, ...] = ()
    run_id: str = ""
    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)  # any JSON: the stage's resolved configuration
    normalization: Normalization | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of a stored model, relative to the version's folder."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """``manifest.json`` of one stored version."""

    version: ModelVersion
    created_time: str  # ISO 8601, UTC
    draft: ManifestDraft
    files: tuple[StoredFile, ...]

    @property
    def lineage(self) -> Lineage:
        """Parents and data."""
        return Lineage(parents=tuple(self.draft.parents), data=tuple(self.draft.data))

    def to_dict(self) -> dict[str, Any]:
        """As stored in JSON."""
        draft = self.draft
        return {
            "format": FORMAT,
            "model": str(self.version),
            "weights_sha256": self.version.weights_sha256,
            "kind": draft.kind,
            "created_time": self.created_time,
            **lineage_to_dict(self.lineage),
            "run_id": draft.run_id,
            "step": draft.step,
            "metrics": dict(draft.metrics),
            "config": dict(draft.config),
            "normalization": draft.normalization.to_dict() if draft.normalization else None,
            "files": [asdict(file) for file in self.files],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Read what ``to_dict`` wrote; raises DataLossError MODEL_DAMAGED."""
        try:
            if values["format"] != FORMAT or values["kind"] not in get_args(ModelKind):
                raise DataLossError(
                    f"a manifest of format {values['format']!r} and kind {values['kind']!r} cannot be read",
                    reason="MODEL_DAMAGED",
                )
            lineage = lineage_from_dict(values)
            normalization = values["normalization"]
            return cls(
                version=version_from_name(values["model"], values["weights_sha256"]),
                created_time=values["created_time"],
                draft=ManifestDraft(
                    kind=values["kind"],
                    parents=lineage.parents,
                    data=lineage.data,
                    run_id=values["run_id"],
                    step=values["step"],
                    metrics=values["metrics"],
                    config=values["config"],
                    normalization=Normalization.from_dict(normalization) if normalization else None,
                ),
                files=tuple(_inside(StoredFile(**file)) for file in values["files"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataLossError(f"a manifest is damaged: {error!r}", reason="MODEL_DAMAGED") from error


def _inside(file: StoredFile) -> StoredFile:
    """Files are written by these paths; one that leads out of the version's folder is refused."""
    path = PurePosixPath(file.path)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise ValueError(f"{file.path!r} lies outside")
    return file


def lineage_to_dict(lineage: Lineage) -> dict[str, Any]:
    """As stored in JSON."""
    return {
        "parents": [
            {"role": parent.role, "model": str(parent.model), "weights_sha256": parent.model.weights_sha256}
            for parent in lineage.parents
        ],
        "data": [asdict(use) for use in lineage.data],
    }


def lineage_from_dict(values: Mapping[str, Any]) -> Lineage:
    """Read what ``lineage_to_dict`` wrote."""
    return Lineage(
        parents=tuple(
            Parent(role=parent["role"], model=version_from_name(parent["model"], parent["weights_sha256"]))
            for parent in values["parents"]
        ),
        data=tuple(DataUse(**use) for use in values["data"]),
    )


def version_from_name(name: str, weights_sha256: str = "") -> ModelVersion:
    """The version behind ``str(version)``, models from outside the store (version 0) included."""
    family, _, number = name.rpartition("/")
    return ModelVersion(family, int(number), weights_sha256)
