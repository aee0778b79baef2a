"""What a check says of a mistake in manifests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Finding:
    """One mistake."""

    rule: str  # a stable word, such as "config-map-key"
    where: str  # the object, such as "Deployment/andon-policy"
    message: str
