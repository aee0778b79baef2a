"""What the pages work with: stores, threads, templates. One object for the whole site.

It also keeps the last known state of the cord, because every page shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from andon.rpc.auth import Authenticator
from services.labeling.account_store import AccountStore
from services.labeling.accounts import Role
from services.labeling.changes import Changes
from services.labeling.config import LabelingConfig
from services.labeling.cord import CordEvent
from services.labeling.cord_keeper import CordKeeper
from services.labeling.database import Database
from services.labeling.metrics import LabelingMetrics
from services.labeling.oidc import OidcProvider
from services.labeling.passwords import Passwords
from services.labeling.quality_reports import QualityReports
from services.labeling.session_store import SessionStore
from services.labeling.store import LabelingStore
from services.labeling.threads import DatabaseThreads
from services.labeling.token_store import TokenStore
from services.labeling.web.metrics import SiteMetrics
from services.labeling.web.templating import Templates

_CORD_MAX_AGE_S = 1.0  # another process may have pulled it


@dataclass(frozen=True, slots=True, kw_only=True)
class MenuEntry:
    """A page that stands in the header."""

    path: str
    name: str
    roles: frozenset[Role]


@dataclass(slots=True, kw_only=True)
class Site:
    """Everything a page may use."""

    config: LabelingConfig
    clock: Callable[[], int]  # microseconds since 1970, UTC
    database: Database  # for stores that a page module brings along
    threads: DatabaseThreads
    urgent_threads: DatabaseThreads  # for who asks, which every page waits for
    labeling: LabelingStore
    cord: CordKeeper
    accounts: AccountStore
    tokens: TokenStore
    sessions: SessionStore
    passwords: Passwords
    answers_recorded: Changes  # announce() after an answer was written
    metrics: LabelingMetrics
    site_metrics: SiteMetrics
    templates: Templates
    site_url: Callable[[], str]  # for links that leave the site; known once it is served
    authenticator: Authenticator  # knows the holders of tokens, for the door that asks for one
    oidc: OidcProvider | None  # where people may sign in instead
    is_secure: bool  # browsers come over https, here or at a proxy
    menu: list[MenuEntry] = field(default_factory=list)
    home_pages: Mapping[Role, str] = field(default_factory=dict)  # the first menu entry of each role
    quality_reports: QualityReports = field(init=False)
    _cord_event: CordEvent | None = None
    _cord_count: int = -1  # of cord_changes, when it was read
    _cord_read_s: float = 0.0

    def __post_init__(self) -> None:
        self.quality_reports = QualityReports(self.database, self.threads)

    async def last_cord_event(self) -> CordEvent | None:
        """The cord as it was at most a second ago; at once after a change in this process."""
        now_s = time.monotonic()
        count = self.cord.changes.count
        if count != self._cord_count or now_s - self._cord_read_s > _CORD_MAX_AGE_S:
            self._cord_event = await self.cord.last()
            self._cord_count, self._cord_read_s = count, now_s
        return self._cord_event
