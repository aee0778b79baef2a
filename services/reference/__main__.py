"""``python -m services.reference``: the reference service as a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from andon.modeling.linear import KERNELS_OF_LOGPROBS, keep_kernels
from andon.rpc.config import load_config
from andon.rpc.server import run_service
from services.reference.config import ReferenceConfig
from services.reference.service import ReferenceService


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; returns the exit code."""
    config = load_config(ReferenceConfig, service="reference", argv=argv)
    keep_kernels(KERNELS_OF_LOGPROBS)
    registry = CollectorRegistry()
    return run_service(ReferenceService(config, registry), config, registry)


if __name__ == "__main__":
    sys.exit(main())
