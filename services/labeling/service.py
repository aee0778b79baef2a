"""How the parts of the labeling service are put together, started and ended.

``andon.rpc.server`` calls the methods of :class:`LabelingService` in the order of its protocol.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence

import grpc.aio
import structlog
from prometheus_client import CollectorRegistry

from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import cord_service_pb2_grpc as cord_grpc
from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from services.labeling.changes import Changes
from services.labeling.config import LabelingConfig
from services.labeling.cord import is_pulled
from services.labeling.cord_servicer import CordServicer
from services.labeling.cord_store import CordStore
from services.labeling.database import Database
from services.labeling.metrics import LabelingMetrics
from services.labeling.servicer import LabelingServicer
from services.labeling.store import Clock, LabelingStore
from services.labeling.threads import DatabaseThreads

_log = structlog.get_logger(__name__)


def now_us() -> int:
    """The time by the machine's clock, in microseconds since 1970 in UTC."""
    return time.time_ns() // 1000


class LabelingService:
    """LabelingService and CordService over one database."""

    name = "labeling"

    def __init__(self, config: LabelingConfig, registry: CollectorRegistry, *, clock: Clock = now_us) -> None:
        self._metrics = LabelingMetrics(registry)
        self._database = Database(
            config.database,
            new_seed=lambda: config.seed if config.seed is not None else secrets.token_hex(16),
            lock_wait_s=config.database_lock_wait_s,
            on_failure=self._metrics.database_failures.inc,
        )
        self._threads = DatabaseThreads(
            num_readers=config.database_readers,
            num_writers=self._database.max_writers,
            max_queued_calls=config.max_queued_calls,
            metrics=self._metrics,
        )
        self._answers_recorded = Changes()
        self._cord_changes = Changes()
        self._cord_store = CordStore(self._database, clock=clock)
        self._labeling = LabelingServicer(
            # A character takes at most four bytes; half of them leaves room for the rest of the message.
            LabelingStore(
                self._database,
                clock=clock,
                max_text_chars_per_lease_call=config.max_message_bytes // 8,
            ),
            threads=self._threads,
            answers_recorded=self._answers_recorded,
            config=config,
            metrics=self._metrics,
        )
        self._cord = CordServicer(
            self._cord_store,
            threads=self._threads,
            cord_changes=self._cord_changes,
            keepalive_s=config.cord_keepalive_s,
            metrics=self._metrics,
        )

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add both servicers."""
        labeling_grpc.add_LabelingServiceServicer_to_server(self._labeling, server)
        cord_grpc.add_CordServiceServicer_to_server(self._cord, server)
        return [
            labeling_pb2.DESCRIPTOR.services_by_name["LabelingService"].full_name,
            cord_pb2.DESCRIPTOR.services_by_name["CordService"].full_name,
        ]

    async def start(self) -> None:
        """Open the database."""
        await asyncio.get_running_loop().run_in_executor(None, self._database.open)
        cord = await self._threads.read(self._cord_store.last)
        self._metrics.cord_pulled.set(is_pulled(cord))
        _log.info("database_open", engine=self._database.engine.dialect.name, cord_pulled=is_pulled(cord))

    async def drain(self) -> None:
        """End the streams that would never end by themselves."""
        self._answers_recorded.end()
        self._cord_changes.end()

    async def close(self) -> None:
        """Finish writes and close the database."""
        await self._threads.close()
        self._database.close()
