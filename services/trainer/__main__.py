"""Runs the trainer: ``python -m services.trainer --help``, or several processes of it under ``torchrun``."""

from __future__ import annotations

import os
import signal
import sys

import structlog
from prometheus_client import CollectorRegistry

from andon.errors import AndonError
from andon.modeling.linear import KERNELS_OF_TRAINING, keep_kernels
from andon.observability.logs import configure_logging
from andon.rpc.config import load_config
from andon.rpc.server import run_service
from services.trainer.config import TrainerConfig
from services.trainer.followers import follow
from services.trainer.precision import computing_in
from services.trainer.ranks import Ranks, join_ranks
from services.trainer.service import TrainerService

_log = structlog.stdlib.get_logger(__name__)


def main() -> int:
    """Serve, or follow the rank that serves, until SIGTERM; returns the exit code."""
    config = load_config(TrainerConfig, service="trainer")
    configure_logging(config.log_level, config.log_format, service="trainer")
    keep_kernels(KERNELS_OF_TRAINING)
    try:
        ranks = join_ranks(config.device, timeout_s=config.rank_timeout_s, when_lost=_end_this_process)
    except AndonError as error:
        _log.error("start_failed", error=str(error), reason=error.reason)
        return 1
    if not ranks.leads:
        return _follow(ranks, config)
    registry = CollectorRegistry()
    code = run_service(TrainerService(config, registry, ranks=ranks), config, registry)
    return 1 if ranks.lost else code


def _follow(ranks: Ranks, config: TrainerConfig) -> int:
    # Rank 0 may need this rank for the step that it is in, and says when the end has come. A rank 0 that is
    # gone without a word ends this process too.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    structlog.contextvars.bind_contextvars(rank=ranks.rank)
    try:
        with computing_in(config.precision, ranks.device):
            follow(ranks, store=config.open_store(), threads=config.threads)
    except AndonError as error:
        _log.error("follower_failed", error=str(error), reason=error.reason)
        return 1
    return 0


def _end_this_process() -> None:
    """Drain as on SIGTERM: ranks cannot come back one by one. On the others, which ignore it, nothing."""
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
