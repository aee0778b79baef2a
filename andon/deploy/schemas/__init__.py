"""Decides whether an object has the shape that an API server would take: strict schemas, several versions of
Kubernetes, and custom resources.

The schemas of Kubernetes itself are those of the package ``kubernetes-validate``. Its own function reads two
megabytes for every object, so its files are read here, once. Custom resources' schemas lie beside this
module.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from andon.deploy.errors import RequirementsError
from andon.deploy.findings import Finding
from andon.deploy.kustomize import Manifest
from andon.deploy.objects import analysis_jobs, where

# Oldest and newest that the manifests are meant for, and some between. 1.28 labels a Job's pods with numbers.
DEFAULT_VERSIONS = ("1.28", "1.31", "1.34", "1.37")

# Any: a JSON schema
Schema = dict[str, Any]


def shape_findings(manifests: Sequence[Manifest], versions: Sequence[str]) -> Iterator[Finding]:
    """What is wrong with the shape of each object, once for all versions that say the same."""
    for manifest in manifests:
        place = where(manifest)
        if not isinstance(manifest.get("apiVersion"), str) or not isinstance(manifest.get("kind"), str):
            yield Finding(rule="schema", where=place, message="apiVersion or kind is missing")
            continue
        texts = [("", json.dumps(manifest, sort_keys=True))]
        texts += [
            (f"the Job of {name}: ", json.dumps(job, sort_keys=True)) for name, job in _jobs_in(manifest)
        ]
        problems: dict[str, list[str]] = {}
        for version in versions:
            for before, text in texts:
                for problem in _problems(text, version):
                    problems.setdefault(before + problem, []).append(version)
        for problem, of_versions in problems.items():
            suffix = "" if len(of_versions) == len(versions) else f" (Kubernetes {', '.join(of_versions)})"
            yield Finding(rule="schema", where=place, message=problem + suffix)


def _jobs_in(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """The Jobs that Argo would make of an AnalysisTemplate of the right shape, by metric."""
    if manifest["kind"] == "AnalysisTemplate" and not _problems(
        json.dumps(manifest, sort_keys=True), DEFAULT_VERSIONS[0]
    ):
        for name, job in analysis_jobs(manifest):
            metadata = {**job.get("metadata", {}), "name": name}
            yield name, {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job["spec"]}


@cache
def _problems(text: str, version: str) -> tuple[str, ...]:
    manifest = json.loads(text)
    validator = _validator(manifest["apiVersion"], manifest["kind"], version)
    if validator is None:
        return (f"no schema of {manifest['apiVersion']} {manifest['kind']} is known",)
    return tuple(_said(error) for error in validator.iter_errors(manifest))


def _said(error: ValidationError) -> str:
    place = ".".join(str(part) for part in error.absolute_path) or "the object"
    message = error.message if len(error.message) < 300 else f"{error.message[:300]}..."
    return f"{place}: {message}"


@cache
def _validator(api_version: str, kind: str, version: str) -> Draft202012Validator | None:
    schema = _custom(api_version, kind)
    if schema is not None:
        return Draft202012Validator(schema)
    folder = _kubernetes_folder(version)
    # The files are named without the domain: rbac.authorization.k8s.io/v1 is "rbac-v1".
    short = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    path = folder / f"{kind.lower()}-{short}.json"
    if not path.is_file():
        return None
    return Draft202012Validator(json.loads(path.read_text("utf-8")), registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Schema]:
    content = json.loads((_kubernetes_folder(version) / "_definitions.json").read_text("utf-8"))
    resource = Resource.from_contents(content, default_specification=DRAFT202012)
    return resource @ Registry()


@cache
def _kubernetes_folder(version: str) -> Traversable:
    """Raises RequirementsError for a version that the package has no schemas of."""
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    if not folder.is_dir():
        raise RequirementsError(f"no schemas of Kubernetes {version} are at hand", version=version)
    return folder


@cache
def _custom(api_version: str, kind: str) -> Schema | None:
    group, _slash, version = api_version.partition("/")
    stem = f"{group}_{version}_{kind}"
    folder = resources.files(__name__)
    if (packed := folder / f"{stem}.json.gz").is_file():
        schema = json.loads(gzip.decompress(packed.read_bytes()))
    elif (written := folder / f"{stem}.yaml").is_file():
        schema = yaml.safe_load(written.read_text("utf-8"))
    else:
        return None
    strict: Schema = _strict(schema)
    # What metadata may hold is not said by a definition.
    strict["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return strict


def _strict(schema: Any) -> Any:
    """The schema with unknown fields refused, as an API server with strict validation refuses them."""
    if isinstance(schema, list):
        return [_strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {
        key: {name: _strict(value) for name, value in content.items()}
        if key == "properties"
        else _strict(content)
        for key, content in schema.items()
    }
    if "properties" in strict and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict
