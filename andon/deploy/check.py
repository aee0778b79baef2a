"""Decides what is wrong with a set of manifests: their shapes first, then all the rest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from andon.deploy.contract import Contract, load_contract
from andon.deploy.findings import Finding
from andon.deploy.kustomize import Manifest
from andon.deploy.objects import look_at, where
from andon.deploy.requirements import Requirements
from andon.deploy.rules import Scene
from andon.deploy.rules.analyses import analysis_findings
from andon.deploy.rules.calls import call_findings
from andon.deploy.rules.images import image_findings
from andon.deploy.rules.namespaces import namespace_findings
from andon.deploy.rules.network_policies import network_policy_findings
from andon.deploy.rules.probes import probe_findings
from andon.deploy.rules.references import reference_findings
from andon.deploy.rules.routes import route_findings
from andon.deploy.rules.security import security_findings
from andon.deploy.rules.selectors import selector_findings
from andon.deploy.rules.series import series_findings
from andon.deploy.rules.settings import setting_findings
from andon.deploy.rules.stores import store_findings
from andon.deploy.schemas import DEFAULT_VERSIONS, shape_findings

RULES = (
    namespace_findings,
    reference_findings,
    selector_findings,
    network_policy_findings,
    call_findings,
    route_findings,
    probe_findings,
    setting_findings,
    store_findings,
    series_findings,
    analysis_findings,
    image_findings,
    security_findings,
)


def check(
    manifests: Sequence[Manifest],
    requirements: Requirements,
    *,
    versions: Sequence[str] = DEFAULT_VERSIONS,
    contract: Contract | None = None,
) -> list[Finding]:
    """All findings, in order; none where the manifests can be applied."""
    shapes = list(shape_findings(manifests, versions))
    # The other rules take the shape for granted, so an object without it is left out of their sight.
    misshapen = {finding.where for finding in shapes}
    shapely = [manifest for manifest in manifests if where(manifest) not in misshapen]
    scene = Scene(cluster=look_at(shapely), requirements=requirements, contract=contract or load_contract())
    rest = chain.from_iterable(rule(scene) for rule in RULES)
    return sorted({*shapes, *rest})
