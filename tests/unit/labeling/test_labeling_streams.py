"""Threads, announcements and export pages, without a network."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.labeling.changes import Changes
from services.labeling.errors import DrainingError, QueueFullError
from services.labeling.export import ExportFilter, ExportPace, pages_of_comparisons
from services.labeling.metrics import LabelingMetrics
from services.labeling.threads import DatabaseThreads


def new_threads(*, max_queued_calls: int = 10) -> DatabaseThreads:
    return DatabaseThreads(
        num_readers=1,
        num_writers=1,
        max_queued_calls=max_queued_calls,
        metrics=LabelingMetrics(CollectorRegistry()),
    )


def test_a_change_before_the_wait_is_not_missed() -> None:
    async def scenario() -> None:
        changes = Changes()
        count = changes.count
        changes.announce()
        await changes.wait_beyond(count, timeout_s=3600)

    asyncio.run(scenario())


def test_a_change_wakes_all_who_wait() -> None:
    async def scenario() -> None:
        changes = Changes()
        waiting = [asyncio.create_task(changes.wait_beyond(changes.count, timeout_s=3600)) for _ in range(3)]
        await asyncio.sleep(0)
        changes.announce()
        await asyncio.gather(*waiting)

    asyncio.run(scenario())


def test_the_time_out_returns_and_the_end_raises() -> None:
    async def scenario() -> None:
        changes = Changes()
        await changes.wait_beyond(0, timeout_s=0.001)
        waiting = asyncio.create_task(changes.wait_beyond(0, timeout_s=3600))
        await asyncio.sleep(0)
        changes.end()
        with pytest.raises(DrainingError):
            await waiting
        with pytest.raises(DrainingError):
            await changes.wait_beyond(changes.count, timeout_s=3600)

    asyncio.run(scenario())


def test_a_full_queue_refuses_and_recovers() -> None:
    async def scenario() -> None:
        threads = new_threads(max_queued_calls=2)
        gate = threading.Event()
        running = [asyncio.create_task(threads.write(gate.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await threads.read(lambda: 1)
        gate.set()
        await asyncio.gather(*running)
        assert await threads.read(lambda: 1) == 1
        await threads.close()

    asyncio.run(scenario())


def test_readers_do_not_wait_for_a_writer() -> None:
    async def scenario() -> None:
        threads = new_threads()
        gate = threading.Event()
        writing = asyncio.create_task(threads.write(gate.wait))
        assert await threads.read(lambda: "read") == "read"
        gate.set()
        await writing
        await threads.close()

    asyncio.run(scenario())


def test_work_whose_caller_left_before_it_began_is_not_done() -> None:
    async def scenario() -> None:
        threads = new_threads()
        gate = threading.Event()
        done: list[str] = []
        first = asyncio.create_task(threads.write(gate.wait))
        second = asyncio.create_task(threads.write(lambda: done.append("second")))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        gate.set()
        await first
        await threads.close()
        assert done == []

    asyncio.run(scenario())


def test_a_write_is_announced_even_when_its_caller_left() -> None:
    async def scenario() -> None:
        threads = new_threads()
        changes = Changes()
        begun, gate = threading.Event(), threading.Event()

        def write() -> None:
            begun.set()
            gate.wait()

        writing = asyncio.create_task(threads.write(write, then=changes.announce))
        await asyncio.to_thread(begun.wait)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        assert changes.count == 0
        gate.set()
        await changes.wait_beyond(0, timeout_s=3600)
        await threads.close()

    asyncio.run(scenario())


class PagesOfNumbers:
    """Stands for a store whose comparisons are their own ids."""

    def __init__(self, num_comparisons: int) -> None:
        self.num_comparisons = num_comparisons

    def comparisons_after(
        self, comparison_id: int, *, wanted: ExportFilter, limit: int
    ) -> tuple[list[Any], int | None]:
        class Numbered:
            def __init__(self, number: int) -> None:
                self.comparison_id = number

        last = min(self.num_comparisons, comparison_id + limit)
        page = [Numbered(number) for number in range(comparison_id + 1, last + 1)]
        return page, last if len(page) == limit else None

    def note_exported(self, wanted: ExportFilter, comparison_id: int) -> None:
        self.exported_through = comparison_id


@pytest.mark.parametrize("num_comparisons", [0, 1, 3, 4, 6, 7])
def test_pages_cover_everything_once(num_comparisons: int) -> None:
    async def scenario() -> list[int]:
        threads = new_threads()
        pages: Callable[..., Any] = pages_of_comparisons
        found = [
            comparison.comparison_id
            async for page in pages(
                PagesOfNumbers(num_comparisons),
                threads,
                Changes(),
                ExportPace(page_comparisons=3, poll_s=3600),
                wanted=ExportFilter(),
                after_comparison_id=0,
                follow=False,
            )
            for comparison in page
        ]
        await threads.close()
        return found

    assert asyncio.run(scenario()) == list(range(1, num_comparisons + 1))


def test_a_follower_polls_for_what_nobody_announced() -> None:
    async def scenario() -> None:
        threads, changes, store = new_threads(), Changes(), PagesOfNumbers(1)
        export: Callable[..., Any] = pages_of_comparisons
        pages = export(
            store,
            threads,
            changes,
            ExportPace(page_comparisons=3, poll_s=0.001),
            wanted=ExportFilter(),
            after_comparison_id=0,
            follow=True,
        )
        assert [c.comparison_id for c in await anext(pages)] == [1]
        store.num_comparisons = 2  # recorded by another process
        assert [c.comparison_id for c in await anext(pages)] == [2]
        changes.end()
        with pytest.raises(DrainingError):
            await anext(pages)
        await threads.close()

    asyncio.run(scenario())
