"""``python -m services.canary``: the canary controller as a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import structlog
from prometheus_client import CollectorRegistry

from andon.errors import AndonError
from andon.observability.logs import configure_logging
from andon.rpc.config import load_config
from andon.rpc.server import run_service
from services.canary.config import CanaryConfig
from services.canary.service import CanaryService

_log = structlog.stdlib.get_logger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; returns the exit code."""
    config = load_config(CanaryConfig, service="canary", argv=argv)
    configure_logging(config.log_level, config.log_format, service="canary")
    registry = CollectorRegistry()
    try:
        service = CanaryService(config, registry)
    except AndonError as error:
        _log.error("start_failed", error=str(error), reason=error.reason)
        return 1
    return run_service(service, config, registry)


if __name__ == "__main__":
    sys.exit(main())
