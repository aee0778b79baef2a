"""What tests of the cord share: waiting for what others do, and a database that is busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from services.labeling.schema import counters
from tests.site import SiteUnderTest

TIMEOUT_S = 60.0


def wait_until(reached: Callable[[], bool], *, timeout_s: float = TIMEOUT_S) -> None:
    """Return once it is so; fails the test after a time that no healthy machine needs."""
    deadline_s = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline_s, "it did not come about"
        time.sleep(0.005)


@contextmanager
def cord_locked(site: SiteUnderTest) -> Iterator[None]:
    """Inside, somebody else holds what every pull has to write."""
    with site.database.engine.connect().execution_options(andon_writes=True) as connection:
        transaction = connection.begin()
        connection.execute(
            sa.update(counters).where(counters.c.name == "cord_event").values(last=counters.c.last)
        )
        yield
        transaction.rollback()


def metric(site: SiteUnderTest, name: str, **labels: str) -> float:
    """The value of a series of the labeling service."""
    found = site.running._registry.get_sample_value(name, labels)
    assert found is not None, (name, labels)
    return found
