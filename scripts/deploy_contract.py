#!/usr/bin/env python3
"""Write andon/deploy/contract.json: what services can be told and what they measure, from the code.

    python -m scripts.deploy_contract           # write it
    python -m scripts.deploy_contract --check   # fail when it is not what the code says

``andon deploy check`` reads it, so that checking manifests imports no service and needs no torch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from andon.rpc.config import ProgramConfig
from scripts.metrics_table import tables

OUT = Path(__file__).parents[1] / "andon" / "deploy" / "contract.json"
# What runs in pods, by the prefix of its variables: the module of its settings.
PROGRAMS = {
    "canary": "services.canary.config",
    "judge": "services.canary.judge_config",
    "labeling": "services.labeling.config",
    "policy": "services.policy.config",
    "reference": "services.reference.config",
    "reward": "services.reward.config",
    "trainer": "services.trainer.config",
}


def config_class(program: str) -> type[ProgramConfig]:
    """The class of a program's settings."""
    found = getattr(importlib.import_module(PROGRAMS[program]), f"{program.capitalize()}Config")
    assert issubclass(found, ProgramConfig)
    return found


def settings(program: str) -> dict[str, Any]:
    """The JSON schema of a program's settings, without prose."""
    schema = config_class(program).model_json_schema()
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
        "settings": {program: settings(program) for program in PROGRAMS},
        "series": sorted({name for rows in tables().values() for row in rows for name in row.series}),
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


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
