"""Decides how a finished stage puts its model into the store, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from andon.modeling.manifest import ManifestDraft
from andon.modeling.versions import ModelVersion
from services.trainer.stages.context import StageContext


def published_earlier(context: StageContext, family: str) -> ModelVersion | None:
    """The version that this very run already stored: a run may be cut off between storing and ending.

    Reports it as published once more, for the report may have been lost.
    """
    if context.restored_state() is None:
        return None
    for stored in context.store.list(family):
        if stored.manifest.draft.run_id == context.run_id:
            context.published(stored.version, stored=True)
            return stored.version
    return None


def publish(
    context: StageContext,
    family: str,
    write: Callable[[Path], None],
    *,
    manifest: ManifestDraft,
    alias: str | None,
) -> ModelVersion:
    """Store the model that ``write`` puts into a folder, name it ``family@alias`` too if wanted, and say
    so.
    """
    stored = context.store.publish(family, write, manifest=manifest)
    if alias is not None:
        context.store.set_alias(f"{family}@{alias}", stored.version)
    context.published(stored.version, stored=True)
    return stored.version
