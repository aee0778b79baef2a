"""Runs the trainer: ``python -m services.trainer --help``."""

from __future__ import annotations

import sys

from prometheus_client import CollectorRegistry

from andon.rpc.config import load_config
from andon.rpc.server import run_service
from services.trainer.config import TrainerConfig
from services.trainer.service import TrainerService


def main() -> int:
    """Serve until SIGTERM; returns the exit code."""
    config = load_config(TrainerConfig, service="trainer")
    registry = CollectorRegistry()
    return run_service(TrainerService(config, registry), config, registry)


if __name__ == "__main__":
    sys.exit(main())
