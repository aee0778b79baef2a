"""The queue before the model thread. Threads meet at events, never at times."""

import asyncio
import threading

import pytest
from prometheus_client import CollectorRegistry

from andon.errors import DeadlineExceededError, ResourceExhaustedError, UnavailableError
from andon.rpc.deadline import set_call_deadline
from andon.rpc.metrics import WorkerMetrics
from andon.rpc.worker import CallerGoneError, ModelWorker

TIMEOUT_S = 60


class Blocker:
    """Work that holds the model thread until it is let go."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.let_go = threading.Event()

    def __call__(self) -> str:
        self.began.set()
        assert self.let_go.wait(TIMEOUT_S)
        return "done"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def make_worker(registry: CollectorRegistry, max_queued_calls: int = 2) -> ModelWorker:
    return ModelWorker(name="test", max_queued_calls=max_queued_calls, metrics=WorkerMetrics(registry))


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, TIMEOUT_S)


def test_work_runs_in_one_other_thread_in_the_order_of_arrival(registry):
    order: list[tuple[int, str]] = []

    async def scenario() -> list[int]:
        worker = make_worker(registry, max_queued_calls=10)

        def work(number: int) -> int:
            order.append((number, threading.current_thread().name))
            return number * number

        results = await asyncio.gather(
            *(worker.run(lambda number=number: work(number)) for number in range(6))
        )
        await worker.close()
        assert all(result.queue_s >= 0 and result.compute_s >= 0 for result in results)
        return [result.value for result in results]

    assert asyncio.run(scenario()) == [0, 1, 4, 9, 16, 25]
    assert [number for number, _ in order] == [0, 1, 2, 3, 4, 5]
    assert len({name for _, name in order}) == 1
    assert order[0][1] != threading.current_thread().name
    assert registry.get_sample_value("andon_model_compute_seconds_count") == 6
    assert registry.get_sample_value("andon_model_waiting_calls") == 0


def test_a_full_queue_refuses_at_once_and_serves_again_later(registry):
    async def scenario() -> None:
        worker, blocker = make_worker(registry, max_queued_calls=2), Blocker()
        running = asyncio.ensure_future(worker.run(blocker))
        await until(blocker.began)
        waiting = [asyncio.ensure_future(worker.run(lambda: 1)) for _ in range(2)]
        await asyncio.sleep(0)
        assert registry.get_sample_value("andon_model_waiting_calls") == 2
        with pytest.raises(ResourceExhaustedError) as raised:
            await worker.run(lambda: 2)
        assert raised.value.reason == "QUEUE_FULL"
        assert raised.value.metadata == {"max_queued_calls": "2"}
        blocker.let_go.set()
        assert (await running).value == "done"
        assert [timed.value for timed in await asyncio.gather(*waiting)] == [1, 1]
        assert (await worker.run(lambda: 3)).value == 3
        await worker.close()

    asyncio.run(scenario())
    assert registry.get_sample_value("andon_model_rejected_calls_total") == 1


def test_queued_work_of_a_caller_who_has_gone_never_runs_and_frees_its_place(registry):
    async def scenario() -> None:
        worker, blocker = make_worker(registry, max_queued_calls=1), Blocker()
        running = asyncio.ensure_future(worker.run(blocker))
        await until(blocker.began)
        ran: list[str] = []
        gone = asyncio.ensure_future(worker.run(lambda: ran.append("gone")))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        after = asyncio.ensure_future(worker.run(lambda: ran.append("after")))
        await asyncio.sleep(0)
        blocker.let_go.set()
        await asyncio.gather(running, after)
        await worker.close()
        assert ran == ["after"]

    asyncio.run(scenario())
    assert registry.get_sample_value("andon_model_abandoned_calls_total", {"cause": "cancelled"}) == 1
    assert registry.get_sample_value("andon_model_waiting_calls") == 0


def test_work_in_progress_is_told_at_its_next_seam_that_its_caller_has_gone(registry):
    async def scenario() -> None:
        worker = make_worker(registry)
        began, let_go, told = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            worker.check_caller()
            began.set()
            assert let_go.wait(TIMEOUT_S)
            try:
                worker.check_caller()
            except CallerGoneError:
                told.set()
                raise

        running = asyncio.ensure_future(worker.run(work))
        await until(began)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        let_go.set()
        await until(told)
        assert (await worker.run(lambda: "next")).value == "next"
        await worker.close()

    asyncio.run(scenario())


def test_work_whose_deadline_passed_in_the_queue_is_not_begun(registry):
    ran: list[str] = []

    async def scenario() -> None:
        worker = make_worker(registry)

        async def late_call() -> None:
            set_call_deadline(0.0)
            await worker.run(lambda: ran.append("late"))

        with pytest.raises(DeadlineExceededError) as raised:
            await asyncio.create_task(late_call())
        assert raised.value.reason == "DEADLINE_PASSED"
        await worker.close()

    asyncio.run(scenario())
    assert ran == []
    assert registry.get_sample_value("andon_model_abandoned_calls_total", {"cause": "deadline"}) == 1


def test_errors_of_the_work_reach_the_caller_and_the_thread_lives_on(registry):
    async def scenario() -> None:
        worker = make_worker(registry)
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 / 0)
        assert (await worker.run(lambda: 5)).value == 5
        await worker.close()

    asyncio.run(scenario())


def test_closing_finishes_what_is_queued_and_refuses_more(registry):
    async def scenario() -> None:
        worker, blocker = make_worker(registry), Blocker()
        running = asyncio.ensure_future(worker.run(blocker))
        await until(blocker.began)
        queued = asyncio.ensure_future(worker.run(lambda: "queued"))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(worker.close())
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError) as raised:
            await worker.run(lambda: None)
        assert raised.value.reason == "SHUTTING_DOWN"
        blocker.let_go.set()
        await closing
        assert [(await running).value, (await queued).value] == ["done", "queued"]

    asyncio.run(scenario())
