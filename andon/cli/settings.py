"""Decides how settings that a person wrote reach a command: a YAML or JSON file, and ``--set key=value`` over
it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from andon.cli.endpoints import CANARY, SERVICES
from andon.errors import InvalidArgumentError

# What a YAML file holds: nested dicts, lists, numbers and text.
Settings = dict[str, Any]


def read_settings(path: Path) -> Settings:
    """A mapping from a YAML file, of which JSON is a part."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise InvalidArgumentError(
            f"{path} is neither YAML nor JSON: {problem}", reason="INVALID_FILE"
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidArgumentError(f"{path} must map names to values", reason="INVALID_FILE")
    return content


def apply_assignments(settings: Settings, assignments: Sequence[str]) -> Settings:
    """``settings`` with ``key=value`` and ``outer.inner=value`` set; values are read as YAML."""
    merged: Settings = json.loads(json.dumps(settings))
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise InvalidArgumentError(
                f"--set {assignment!r}: write it as key=value", reason="INVALID_ASSIGNMENT"
            )
        try:
            value = _number_or_yaml(text)
        except yaml.YAMLError as error:
            raise InvalidArgumentError(
                f"--set {name}: {text!r} is not a value: {' '.join(str(error).split())}",
                reason="INVALID_ASSIGNMENT",
            ) from error
        place = merged
        for key in keys[:-1]:
            inner = place.setdefault(key, {})
            if not isinstance(inner, dict):
                raise InvalidArgumentError(
                    f"--set {name}: {key} is {inner!r}, which has no parts", reason="INVALID_ASSIGNMENT"
                )
            place = inner
        place[keys[-1]] = value
    return merged


def write_service_configs(settings: Settings, home: Path, *, canary: bool = False) -> dict[str, Path]:
    """One file per section, where the services can read them; returns them by service.

    ``canary`` says whether the canary's controller is among the services.
    """
    known = {*SERVICES, CANARY} if canary else set(SERVICES)
    unknown = sorted(set(settings) - known)
    if unknown:
        hint = "; it needs --canary" if unknown[0] == CANARY else ""
        raise InvalidArgumentError(
            f"unknown section {unknown[0]!r}{hint}; the services are {', '.join(sorted(known))}",
            reason="INVALID_FILE",
        )
    files: dict[str, Path] = {}
    for service, section in settings.items():
        if not isinstance(section, dict):
            raise InvalidArgumentError(f"section {service!r} must map names to values", reason="INVALID_FILE")
        path = home / "config" / f"{service}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(section, indent=2) + "\n", encoding="utf-8")
        files[service] = path
    return files


def _number_or_yaml(text: str) -> Any:  # whatever YAML can say
    # YAML 1.1 takes 1e-4 for text because it has no dot.
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except ValueError:
        return yaml.safe_load(text)
