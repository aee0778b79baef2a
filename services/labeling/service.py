"""How the parts of the labeling service are put together, started and ended.

``andon.rpc.server`` calls the methods of :class:`LabelingService` in the order of its protocol.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence

import grpc.aio
import structlog
from prometheus_client import CollectorRegistry

from andon.api.labeling.v1 import access_service_pb2 as access_pb2
from andon.api.labeling.v1 import access_service_pb2_grpc as access_grpc
from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import cord_service_pb2_grpc as cord_grpc
from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from andon.rpc.auth import AccessPolicy, FirstOf, RecentCallers
from services.labeling.access import ROLES_BY_METHOD
from services.labeling.access_servicer import AccessServicer
from services.labeling.account_store import AccountStore
from services.labeling.changes import Changes
from services.labeling.config import LabelingConfig
from services.labeling.cord import is_pulled
from services.labeling.cord_keeper import CordKeeper
from services.labeling.cord_servicer import CordServicer
from services.labeling.cord_store import CordStore
from services.labeling.database import Database
from services.labeling.figures import FiguresWatch
from services.labeling.figures_store import FiguresStore
from services.labeling.import_store import ImportStore
from services.labeling.limits import Clock
from services.labeling.metrics import LabelingMetrics
from services.labeling.oidc import OidcProvider
from services.labeling.passwords import Passwords
from services.labeling.project_store import ProjectStore
from services.labeling.quality_store import QualityStore
from services.labeling.servicer import LabelingServicer
from services.labeling.session_store import SessionStore, SessionTimes
from services.labeling.store import LabelingStore
from services.labeling.threads import DatabaseThreads
from services.labeling.token_holders import TokensInDatabase, TokensInFile
from services.labeling.token_store import TokenStore
from services.labeling.web.app import build_app
from services.labeling.web.metrics import SiteMetrics
from services.labeling.web.server import WebServer
from services.labeling.web.site import Site
from services.labeling.web.templating import Templates

_CALLER_LIFETIME_S = 2.0  # how long a revoked token may go on being known
_MAX_REMEMBERED_CALLERS = 10_000

_log = structlog.get_logger(__name__)


def now_us() -> int:
    """The time by the machine's clock, in microseconds since 1970 in UTC."""
    return time.time_ns() // 1000


class LabelingService:
    """The RPCs and the site over one database."""

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
        # Who calls, and the cord: small calls that never wait behind labelers' work.
        self._urgent_threads = DatabaseThreads(
            num_readers=2, num_writers=1, max_queued_calls=config.max_queued_calls, metrics=self._metrics
        )
        self._answers_recorded = Changes()
        self._cord = CordKeeper(
            CordStore(self._database, clock=clock),
            threads=self._urgent_threads,
            metrics=self._metrics,
            poll_s=config.cord_poll_s,
        )
        labeling_store = LabelingStore(
            self._database,
            clock=clock,
            # A character takes at most four bytes; half of them leaves room for the rest of the message.
            max_text_chars_per_lease_call=config.max_message_bytes // 8,
        )
        self._labeling = LabelingServicer(
            labeling_store,
            projects=ProjectStore(self._database, clock=clock),
            imports=ImportStore(self._database, clock=clock),
            quality=QualityStore(self._database),
            threads=self._threads,
            answers_recorded=self._answers_recorded,
            config=config,
            metrics=self._metrics,
        )
        self._cord_servicer = CordServicer(
            self._cord, keepalive_s=config.cord_keepalive_s, metrics=self._metrics
        )

        self._figures = FiguresWatch(
            FiguresStore(self._database, clock=clock),
            threads=self._threads,
            metrics=self._metrics,
            interval_s=config.figures_interval_s,
            num_answers=config.figures_answers,
            num_recent_known=config.figures_recent_known,
            active_s=config.figures_active_s,
        )

        accounts = AccountStore(self._database, clock=clock)
        tokens = TokenStore(self._database, clock=clock)
        self._tokens_file = None if config.tokens_file is None else TokensInFile(config.tokens_file)
        self._access_policy = AccessPolicy(
            authenticator=RecentCallers(
                FirstOf(
                    *([] if self._tokens_file is None else [self._tokens_file]),
                    TokensInDatabase(tokens, self._urgent_threads),
                ),
                lifetime_s=_CALLER_LIFETIME_S,
                max_entries=_MAX_REMEMBERED_CALLERS,
                clock=time.monotonic,
            ),
            roles_by_method=ROLES_BY_METHOD,
        )
        self._web = WebServer(config)
        self._access = AccessServicer(accounts, tokens, threads=self._threads, site_url=lambda: self._web.url)
        self._passwords = Passwords()
        self._oidc = None if config.oidc_issuer is None else OidcProvider(config)
        self._site = Site(
            config=config,
            clock=clock,
            database=self._database,
            threads=self._threads,
            urgent_threads=self._urgent_threads,
            labeling=labeling_store,
            cord=self._cord,
            accounts=accounts,
            tokens=tokens,
            sessions=SessionStore(
                self._database,
                clock=clock,
                times=SessionTimes(
                    absolute_us=round(config.session_hours * 3600e6),
                    idle_us=round(config.session_idle_hours * 3600e6),
                ),
            ),
            passwords=self._passwords,
            answers_recorded=self._answers_recorded,
            metrics=self._metrics,
            site_metrics=SiteMetrics(registry),
            templates=Templates(),
            site_url=lambda: self._web.url,
            authenticator=self._access_policy.authenticator,
            oidc=self._oidc,
            is_secure=config.is_site_secure,
        )

    @property
    def access_policy(self) -> AccessPolicy:
        """Who may call which RPC."""
        return self._access_policy

    @property
    def ready_facts(self) -> Mapping[str, str | int]:
        """Where the site is."""
        return {"web_port": self._web.port, "web_url": self._web.url}

    @property
    def site_url(self) -> str:
        """Where people find the site, once it is started."""
        return self._web.url

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicers."""
        labeling_grpc.add_LabelingServiceServicer_to_server(self._labeling, server)
        cord_grpc.add_CordServiceServicer_to_server(self._cord_servicer, server)
        access_grpc.add_AccessServiceServicer_to_server(self._access, server)
        return [
            labeling_pb2.DESCRIPTOR.services_by_name["LabelingService"].full_name,
            cord_pb2.DESCRIPTOR.services_by_name["CordService"].full_name,
            access_pb2.DESCRIPTOR.services_by_name["AccessService"].full_name,
        ]

    async def start(self) -> None:
        """Read the tokens, open the database and then the site."""
        if self._tokens_file is not None:
            self._tokens_file.read()
        await asyncio.get_running_loop().run_in_executor(None, self._database.open)
        last = await self._cord.start()
        _log.info("database_open", engine=self._database.engine.dialect.name, cord_pulled=is_pulled(last))
        self._figures.start()
        await self._web.start(build_app(self._site))

    async def drain(self) -> None:
        """End the streams that would never end by themselves."""
        self._answers_recorded.end()
        self._cord.end()
        await self._web.drain()

    async def close(self) -> None:
        """Finish writes and close the database."""
        await self._cord.close()
        await self._figures.close()
        await self._threads.close()
        await self._urgent_threads.close()
        self._passwords.close()
        if self._oidc is not None:
            await self._oidc.close()
        self._database.close()
