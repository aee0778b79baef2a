"""``python -m services.reward``: the reward service as a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from andon.modeling.linear import KERNELS_OF_SCORES, keep_kernels
from andon.rpc.config import load_config
from andon.rpc.server import run_service
from services.reward.config import RewardConfig
from services.reward.service import RewardService


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; returns the exit code."""
    config = load_config(RewardConfig, service="reward", argv=argv)
    keep_kernels(KERNELS_OF_SCORES)
    registry = CollectorRegistry()
    return run_service(RewardService(config, registry), config, registry)


if __name__ == "__main__":
    sys.exit(main())
