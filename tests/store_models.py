"""Pretended models for tests of the model store, and what is said about them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import WEIGHTS_NAME, ModelStore

DRAFT = ManifestDraft(kind="causal_lm", run_id="run-1")


def weights(seed: int = 0) -> Callable[[Path], None]:
    """Writes a pretended model whose weights are ``seed``."""

    def write(folder: Path) -> None:
        (folder / "model.bin").write_bytes(bytes([seed]) * 1000)
        (folder / "nested").mkdir()
        (folder / "nested" / "vocabulary.txt").write_text("a b c")
        digest = hashlib.sha256(bytes([seed])).hexdigest()
        (folder / WEIGHTS_NAME).write_text(json.dumps({"weights_sha256": digest}))

    return write


def publish(store: ModelStore, seed: int = 1) -> str:
    """Publishes a pretended policy, and says its name and number."""
    return str(store.publish("policy", weights(seed), manifest=DRAFT).version)
