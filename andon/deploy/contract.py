"""What services can be told and what they tell Prometheus, as ``scripts/deploy_contract.py`` wrote it down.

Read from a file, because ``andon`` imports no service.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """``settings`` holds a JSON schema by service, and one for the judge; ``series`` all names that a query
    may use.
    """

    settings: Mapping[str, Mapping[str, Any]]  # Any: JSON schemas
    series: frozenset[str]


@cache
def load_contract() -> Contract:
    """The contract of this version."""
    content = json.loads((resources.files("andon.deploy") / "contract.json").read_text("utf-8"))
    return Contract(settings=content["settings"], series=frozenset(content["series"]))
