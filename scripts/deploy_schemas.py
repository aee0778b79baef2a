#!/usr/bin/env python3
"""Write andon/deploy/schemas from CustomResourceDefinitions: one gzipped JSON schema per kind and version.

    python -m scripts.deploy_schemas FOLDER      # with *.yaml or *.yaml.gz

Descriptions and rules in CEL, which a JSON schema validator cannot evaluate, are left out; nothing else
changes. Only the kinds that the manifests use are taken. Their origins stand in the README.md there.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

OUT = Path(__file__).parents[1] / "andon" / "deploy" / "schemas"
KINDS = {
    "AnalysisTemplate",
    "Gateway",
    "GRPCRoute",
    "JobSet",
    "PodMonitor",
    "PrometheusRule",
    "Rollout",
    "ScaledObject",
}
LEFT_OUT = {"description", "x-kubernetes-validations"}


def without_words(schema: Any, *, are_names: bool = False) -> Any:
    """The schema without its prose; below ``properties`` a key is a field's name, whatever it is called."""
    if isinstance(schema, list):
        return [without_words(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_words(value, are_names=key == "properties" and not are_names)
        for key, value in schema.items()
        if are_names or key not in LEFT_OUT
    }


def main() -> int:
    """Write; the exit code."""
    folder = Path(sys.argv[1])
    for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yaml.gz"))):
        content = path.read_bytes()
        for definition in yaml.safe_load_all(gzip.decompress(content) if path.suffix == ".gz" else content):
            if definition is None or definition["spec"]["names"]["kind"] not in KINDS:
                continue
            for version in definition["spec"]["versions"]:
                if version["served"]:
                    spec = definition["spec"]
                    name = f"{spec['group']}_{version['name']}_{spec['names']['kind']}"
                    schema = without_words(version["schema"]["openAPIV3Schema"])
                    text = json.dumps(schema, sort_keys=True, separators=(",", ":"))
                    # No time in the header: the same definition gives the same bytes.
                    (OUT / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
