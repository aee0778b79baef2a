"""Runs the labeling service: ``python -m services.labeling --help``."""

from __future__ import annotations

import sys

from prometheus_client import CollectorRegistry

from andon.rpc.config import load_config
from andon.rpc.server import run_service
from services.labeling.config import LabelingConfig
from services.labeling.service import LabelingService


def main() -> int:
    """Serve until SIGTERM; returns the exit code."""
    config = load_config(LabelingConfig, service="labeling")
    registry = CollectorRegistry()
    return run_service(LabelingService(config, registry), config, registry)


if __name__ == "__main__":
    sys.exit(main())
