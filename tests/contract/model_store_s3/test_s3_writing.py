"""What holds for writers to a bucket, whatever happens to them, the network and the server."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from andon.errors import AlreadyExistsError, DataLossError
from andon.modeling.errors import StoreUnreachableError
from andon.modeling.store import ModelStore
from tests.s3_server import Fault, FaultyProxy, Request, S3Server
from tests.store_models import DRAFT, publish, weights
from tests.store_writer import publish_reserved


def once(index: int, fault: Callable[[], Fault]) -> Callable[[Request], Fault | None]:
    return lambda request: fault() if request.index == index else None


def test_the_layout_is_that_of_the_folder(
    direct: ModelStore, s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    folder = ModelStore(tmp_path / "store")
    for one in (direct, folder):
        one.publish("policy", weights(1), manifest=DRAFT)
        one.reserve_versions("policy", 2, run_id="run-1")
        one.set_alias("policy@stable", "policy/1")
    of_folder = {
        path.relative_to(folder.root).as_posix() for path in folder.root.rglob("*") if path.is_file()
    }
    of_bucket = {key.removeprefix("models/") for key in s3_server.keys(s3_bucket)}
    assert of_bucket - of_folder == {"counters/policy.json", ".conditional-writes"}
    assert of_folder - of_bucket == {".lock"}
    with s3_server.request("GET", f"/{s3_bucket}/models/aliases/policy@stable") as answer:
        assert answer.read() == (folder.root / "aliases" / "policy@stable").read_bytes()
    with s3_server.request("GET", f"/{s3_bucket}/models/reservations/policy/run-1.json") as answer:
        assert answer.read() == (folder.root / "reservations" / "policy" / "run-1.json").read_bytes()


def test_a_copied_folder_goes_on_counting(
    direct: ModelStore, s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    folder = ModelStore(tmp_path / "store")
    folder.publish("policy", weights(1), manifest=DRAFT)
    folder.reserve_versions("policy", 5, run_id="run-1")
    for path in folder.root.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            key = path.relative_to(folder.root).as_posix()
            s3_server.request("PUT", f"/{s3_bucket}/models/{key}", path.read_bytes()).close()
    direct.verify(direct.resolve("policy@latest"))
    assert publish(direct) == "policy/7"
    assert direct.reserve_versions("policy", 5, run_id="run-1") == range(2, 7)


def test_a_counter_that_is_older_than_the_versions_takes_no_number_twice(
    direct: ModelStore, s3_server: S3Server, s3_bucket: str
) -> None:
    publish(direct)
    with s3_server.request("GET", f"/{s3_bucket}/models/counters/policy.json") as answer:
        old = answer.read()
    publish(direct)
    s3_server.request("PUT", f"/{s3_bucket}/models/counters/policy.json", old).close()
    assert publish(direct) == "policy/3"
    s3_server.request("PUT", f"/{s3_bucket}/models/counters/policy.json", b"{").close()
    with pytest.raises(DataLossError) as caught:
        publish(direct)
    assert caught.value.reason == "COUNTER_DAMAGED"


# --- writers that die, answers that get lost ---


def requests_of_a_publication(store: ModelStore, proxy: FaultyProxy) -> int:
    begin = len(proxy.requests)
    store.publish("policy", weights(1), manifest=DRAFT)
    return len(proxy.requests) - begin


def test_a_writer_killed_at_any_request_leaves_no_half_version(
    s3_server: S3Server, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.store_writer", "andon.modeling.stores.s3"])
    index, finished = 0, False
    while not finished:
        place = f"s3://{s3_server.new_bucket()}/models"
        store = ModelStore(place, cache=tmp_path / "cache")
        store.reserve_versions("policy", 3, run_id="run-1")
        writer = processes.Process(target=publish_reserved, args=(place, 2, dict(os.environ)))

        s3_proxy.plan = once(len(s3_proxy.requests) + index, lambda kill=writer.kill: Fault(after=kill))  # type: ignore[misc]
        writer.start()
        writer.join()
        s3_proxy.plan = lambda request: None
        assert writer.exitcode in (0, -signal.SIGKILL)
        finished = writer.exitcode == 0
        seen = store.list()
        for stored in seen:
            store.verify(stored)
        assert [str(stored.version) for stored in seen] in ([], ["policy/2"])
        # The run goes on, with weights that came out otherwise where nobody saw the first ones.
        again = seen[0] if seen else store.publish("policy", weights(7), manifest=DRAFT, version=2)
        store.verify(again)
        assert publish(store) == "policy/4"
        store.verify(store.resolve("policy@latest"))
        index += 1
    assert index > 8  # after each request, and once never


def test_every_answer_may_get_lost(
    store: ModelStore, s3_proxy: FaultyProxy, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = requests_of_a_publication(store, s3_proxy)
    for index in range(count):
        s3_proxy.plan = once(len(s3_proxy.requests) + index, lambda: Fault(drop=True))
        publish(store, seed=index)
        s3_proxy.plan = lambda request: None
    seen = store.list("policy")
    assert len(seen) == count + 1  # nothing twice
    assert store.resolve("policy@latest").version == seen[-1].version
    s3_proxy.plan = once(len(s3_proxy.requests) + 4, lambda: Fault(drop=True))
    assert store.reserve_versions("policy", 3, run_id="run-1") == store.reserve_versions(
        "policy", 3, run_id="run-1"
    )


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError")])
def test_a_server_that_is_out_of_order_for_a_moment(
    store: ModelStore, s3_proxy: FaultyProxy, status: int, code: str
) -> None:
    count = requests_of_a_publication(store, s3_proxy)
    for index in range(count):
        s3_proxy.plan = once(len(s3_proxy.requests) + index, lambda: Fault(status=status, code=code))
        publish(store)
    assert len(store.list("policy")) == count + 1


@pytest.mark.parametrize(
    ("status", "code"), [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict")]
)
def test_others_get_in_the_way(
    impatient: None, store: ModelStore, s3_proxy: FaultyProxy, status: int, code: str
) -> None:
    publish(store)
    refusals = iter([Fault(status=status, code=code)] * 2)

    def plan(request: Request) -> Fault | None:
        return next(refusals, None) if request.method == "PUT" and "counters" in request.path else None

    s3_proxy.plan = plan
    assert publish(store) == "policy/2"
    refusals = iter(lambda: Fault(status=status, code=code), None)  # without end
    with pytest.raises(StoreUnreachableError) as caught:
        publish(store)
    assert caught.value.reason == "STORE_BUSY"
    assert [str(stored.version) for stored in store.list()] == ["policy/1", "policy/2"]


def test_two_processes_of_a_run_get_the_same_numbers(
    store: ModelStore, direct: ModelStore, s3_proxy: FaultyProxy
) -> None:
    others: list[range] = []

    def plan(request: Request) -> Fault | None:
        if request.method == "PUT" and "reservations" in request.path:
            return Fault(before=lambda: others.append(direct.reserve_versions("policy", 3, run_id="run-1")))
        return None

    s3_proxy.plan = plan
    assert store.reserve_versions("policy", 3, run_id="run-1") == others[0]
    assert publish(store) == "policy/7"  # 1 to 3 are a hole


def test_a_slow_writer_does_not_move_latest_back(
    store: ModelStore, direct: ModelStore, s3_proxy: FaultyProxy
) -> None:
    publish(direct)
    fast: list[str] = []

    def plan(request: Request) -> Fault | None:
        if request.method == "PUT" and "aliases" in request.path and not fast:
            return Fault(before=lambda: fast.append(publish(direct, seed=3)))
        return None

    s3_proxy.plan = plan
    assert publish(store, seed=2) == "policy/2"
    assert fast == ["policy/3"]
    assert str(store.resolve("policy@latest").version) == "policy/3"


def test_two_processes_of_a_run_publish_one_version(
    store: ModelStore, direct: ModelStore, s3_proxy: FaultyProxy
) -> None:
    store.reserve_versions("policy", 1, run_id="run-1")

    def race(seed: int) -> Callable[[Request], Fault | None]:
        def other() -> None:
            direct.publish("policy", weights(seed), manifest=DRAFT, version=1)

        def plan(request: Request) -> Fault | None:
            is_last = request.method == "PUT" and request.path.endswith("manifest.json")
            return Fault(before=other) if is_last else None

        return plan

    s3_proxy.plan = race(1)
    stored = store.publish("policy", weights(1), manifest=DRAFT, version=1)
    assert direct.resolve("policy/1") == stored
    direct.verify(stored)
    with pytest.raises(AlreadyExistsError) as caught:
        store.publish("policy", weights(2), manifest=DRAFT, version=1)
    assert caught.value.reason == "MODEL_VERSION_CONFLICT"
    direct.verify(stored)
