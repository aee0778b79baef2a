"""A store on disk with a clock that only the test moves."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from services.labeling.assignment import LeasedTask, LeaseOrder
from services.labeling.cord_store import CordStore
from services.labeling.database import Database
from services.labeling.store import LabelingStore
from tests.labeling_stores import SiteStores


class ManualClock:
    def __init__(self) -> None:
        self.now_us = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now_us

    def advance_s(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)


@dataclass
class OpenStore:
    database: Database
    store: LabelingStore
    cord: CordStore
    clock: ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def open_store(database_url: str, clock: ManualClock) -> Iterator[Callable[..., OpenStore]]:
    """``open_store()`` opens the test's one database, again and again if wanted, as a restart would."""
    with ExitStack() as databases:

        def open_it(*, lock_wait_s: float = 5.0, seed: str = "seed", **limits: int) -> OpenStore:
            database = Database(database_url, new_seed=lambda: seed, lock_wait_s=lock_wait_s)
            databases.callback(database.close)
            database.open()
            return OpenStore(
                database=database,
                store=LabelingStore(database, clock=clock, **limits),
                cord=CordStore(database, clock=clock),
                clock=clock,
            )

        yield open_it


@pytest.fixture
def lease_one() -> Callable[..., LeasedTask | None]:
    """``lease_one(store, labeler, **order)`` gives the labeler's next task for a minute, or None."""

    def lease(store: LabelingStore, labeler: str, **order: Any) -> LeasedTask | None:
        leased = store.lease_tasks(
            LeaseOrder(
                **{"labeler_id": labeler, "batch": "", "max_tasks": 1, "duration_us": 60_000_000, **order}
            )
        )
        return leased[0] if leased else None

    return lease


@pytest.fixture
def site(open_store: Callable[..., OpenStore]) -> SiteStores:
    return SiteStores(open_store())
