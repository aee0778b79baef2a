"""``python -m services.policy``: the policy service as a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from andon.modeling.linear import KERNELS_OF_SAMPLING, keep_kernels
from andon.rpc.config import load_config
from andon.rpc.server import run_service
from services.policy.config import PolicyConfig
from services.policy.service import PolicyService


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; returns the exit code."""
    config = load_config(PolicyConfig, service="policy", argv=argv)
    keep_kernels(KERNELS_OF_SAMPLING)
    registry = CollectorRegistry()
    return run_service(PolicyService(config, registry), config, registry)


if __name__ == "__main__":
    sys.exit(main())
