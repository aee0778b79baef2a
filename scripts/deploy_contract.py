#!/usr/bin/env python3
"""Write andon/deploy/contract.json: what services can be told and what they measure, from the code.

    python -m scripts.deploy_contract           # write it
    python -m scripts.deploy_contract --check   # fail when it is not what the code says

``andon deploy check`` reads it, so that checking manifests imports no service and needs no torch.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from andon.rpc.config import ServerConfig
from scripts.metrics_table import tables

OUT = Path(__file__).parents[1] / "andon" / "deploy" / "contract.json"
SERVICES = ("canary", "labeling", "policy", "reference", "reward", "trainer")


def config_class(service: str) -> type[ServerConfig]:
    """The class of a service's settings."""
    module = importlib.import_module(f"services.{service}.config")
    found = getattr(module, f"{service.capitalize()}Config")
    assert issubclass(found, ServerConfig)
    return found


def settings(service: str) -> dict[str, Any]:
    """The JSON schema of a service's settings, without prose."""
    schema = config_class(service).model_json_schema()
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _without_words(field) for name, field in schema["properties"].items()},
    }


def _without_words(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: _without_words(value) for key, value in schema.items() if key not in ("title", "description")
        }
    return [_without_words(entry) for entry in schema] if isinstance(schema, list) else schema


def contract() -> str:
    """The whole file."""
    content = {
        "settings": {service: settings(service) for service in SERVICES if _exists(service)},
        "series": sorted({name for rows in tables().values() for row in rows for name in row.series}),
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _exists(service: str) -> bool:
    return importlib.util.find_spec(f"services.{service}.config") is not None


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when it is out of date")
    if parser.parse_args().check:
        if OUT.read_text() != contract():
            print(f"{OUT} is not what the code says: make deploy-contract", file=sys.stderr)
            return 1
        return 0
    OUT.write_text(contract())
    return 0


if __name__ == "__main__":
    sys.exit(main())
