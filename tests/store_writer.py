"""Publishes versions without end, for the test that kills it; run with the store's root as its argument."""

import json
import sys
from pathlib import Path

from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import WEIGHTS_NAME, ModelStore


def write(folder: Path) -> None:
    for number in range(5):
        (folder / f"part-{number}.bin").write_bytes(bytes([number]) * 100_000)
    (folder / WEIGHTS_NAME).write_text(json.dumps({"weights_sha256": "a" * 64}))


if __name__ == "__main__":
    store = ModelStore(Path(sys.argv[1]))
    sys.stdout.write("started\n")
    sys.stdout.flush()
    while True:
        store.publish("policy", write, manifest=ManifestDraft(kind="causal_lm"))
