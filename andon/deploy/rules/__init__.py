"""What must hold of manifests as a whole, beyond the shape of each object. One module per subject."""

from __future__ import annotations

from dataclasses import dataclass

from andon.deploy.contract import Contract
from andon.deploy.objects import Cluster
from andon.deploy.requirements import Requirements


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What rules look at."""

    cluster: Cluster
    requirements: Requirements
    contract: Contract
