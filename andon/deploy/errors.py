"""What rendering and checking can fail at; what a check finds in manifests is no error but a finding.

AndonError
├── FailedPreconditionError
│   └── KubectlError             KUBECTL_MISSING, KUBECTL_TOO_OLD: nothing here can render
└── InvalidArgumentError
    ├── RenderError              RENDER_FAILED: the overlay is no overlay
    └── RequirementsError        INVALID_REQUIREMENTS: requirements.yaml is not what it should be
"""

from __future__ import annotations

from andon.errors import FailedPreconditionError, InvalidArgumentError


class KubectlError(FailedPreconditionError):
    """There is no kubectl that could render."""


class RenderError(InvalidArgumentError):
    """Kustomize does not take the folder."""

    default_reason = "RENDER_FAILED"


class RequirementsError(InvalidArgumentError):
    """What the manifests expect of a cluster is not written as it should be."""

    default_reason = "INVALID_REQUIREMENTS"
