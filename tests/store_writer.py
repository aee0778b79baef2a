"""Processes that publish, for tests that kill them. Run with a store's place it publishes without end."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import WEIGHTS_NAME, ModelStore
from tests.store_models import DRAFT, weights


def publish_reserved(place: str, version: int, variables: Mapping[str, str]) -> None:
    """One version of policy that run-1 has reserved, in a process with these variables."""
    os.environ.update(variables)
    ModelStore(place).publish("policy", weights(1), manifest=DRAFT, version=version)


def write(folder: Path) -> None:
    for number in range(5):
        (folder / f"part-{number}.bin").write_bytes(bytes([number]) * 100_000)
    (folder / WEIGHTS_NAME).write_text(json.dumps({"weights_sha256": "a" * 64}))


if __name__ == "__main__":
    store = ModelStore(sys.argv[1])
    sys.stdout.write("started\n")
    sys.stdout.flush()
    while True:
        store.publish("policy", write, manifest=ManifestDraft(kind="causal_lm"))
