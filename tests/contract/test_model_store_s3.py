"""What holds for a model store in a bucket, whatever happens to writers, the network and the server."""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from andon.errors import AlreadyExistsError, DataLossError, InvalidArgumentError
from andon.modeling.errors import StoreRefusedError, StoreUnreachableError
from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import WEIGHTS_NAME, ModelStore
from andon.modeling.stores import bucket as bucket_module
from andon.modeling.stores import s3 as s3_module
from tests.s3_server import Fault, FaultyProxy, Request, S3Server, environment
from tests.store_models import DRAFT, weights
from tests.store_writer import publish_reserved

SECRET = environment("")["AWS_SECRET_ACCESS_KEY"]


@pytest.fixture
def uri(s3_bucket: str) -> str:
    return f"s3://{s3_bucket}/models"


@pytest.fixture
def direct(uri: str, tmp_path: Path) -> ModelStore:
    """The store without the proxy between, with a cache of its own."""
    return ModelStore(uri, cache=tmp_path / "direct-cache")


@pytest.fixture
def store(uri: str, direct: ModelStore, s3_proxy: FaultyProxy) -> ModelStore:
    """The store behind the proxy."""
    return ModelStore(uri)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives up at once, and never pauses."""
    monkeypatch.setattr(bucket_module, "RETRIES", 0)
    monkeypatch.setattr(bucket_module, "pause", lambda attempt: None)
    monkeypatch.setattr(s3_module, "pause", lambda attempt: None)


def keys(server: S3Server, bucket: str) -> list[str]:
    with server.request("GET", f"/{bucket}?list-type=2") as answer:
        tree = ElementTree.fromstring(answer.read())
    return sorted(element.text or "" for element in tree.iter() if element.tag.endswith("}Key"))


def once(index: int, fault: Callable[[], Fault]) -> Callable[[Request], Fault | None]:
    return lambda request: fault() if request.index == index else None


def publish(store: ModelStore, seed: int = 1) -> str:
    return str(store.publish("policy", weights(seed), manifest=DRAFT).version)


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
    of_bucket = {key.removeprefix("models/") for key in keys(s3_server, s3_bucket)}
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


def test_readers_never_write(store: ModelStore, direct: ModelStore, s3_proxy: FaultyProxy) -> None:
    publish(direct)
    direct.reserve_versions("policy", 2, run_id="run-1")
    store.verify(store.locate("policy@latest").stored or store.resolve("policy/1"))
    store.list()
    store.aliases()
    store.lineage("policy/2")
    assert {request.method for request in s3_proxy.requests} == {"GET", "HEAD"}


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


# --- reading ---


def large(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(os.urandom(bucket_module.PART_BYTES * 2 + 12345))
    (folder / "config.json").write_text("{}")
    (folder / "empty").touch()
    digest = hashlib.sha256(b"large").hexdigest()
    (folder / WEIGHTS_NAME).write_text(json.dumps({"weights_sha256": digest}))


def test_large_files_travel_in_parts(store: ModelStore, s3_proxy: FaultyProxy) -> None:
    stored = store.publish("policy", large, manifest=DRAFT)
    sent = [request for request in s3_proxy.requests if "partNumber=" in request.path]
    assert len(sent) == 3
    assert store.publish("policy", weights(), manifest=DRAFT).version.version == 2
    begin = len(s3_proxy.requests)
    folder = Path(store.locate("policy/1").source)
    read = [request for request in s3_proxy.requests[begin:] if request.path.endswith("model.safetensors")]
    assert [request.method for request in read].count("GET") == 3
    (weights_file,) = [file for file in stored.manifest.files if file.path == "model.safetensors"]
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == weights_file.sha256
    assert (folder / "empty").read_bytes() == b""
    store.verify(stored)


def test_a_version_is_downloaded_once_however_many_want_it(
    store: ModelStore, direct: ModelStore, s3_proxy: FaultyProxy
) -> None:
    publish(direct)
    wanted = [threading.Thread(target=store.locate, args=("policy/1",)) for _ in range(4)]
    for thread in wanted:
        thread.start()
    for thread in wanted:
        thread.join()
    fetched = [request.path for request in s3_proxy.requests if request.method == "GET"]
    assert sum(path.endswith("model.bin") for path in fetched) == 1
    model = Path(store.locate("policy/1").source) / "model.bin"
    assert model.stat().st_mode & 0o222 == 0


def test_without_weights_none_are_downloaded(
    store: ModelStore, direct: ModelStore, s3_proxy: FaultyProxy
) -> None:
    publish(direct)
    folder = Path(store.locate("policy/1", weights=False).source)
    assert (folder / "nested" / "vocabulary.txt").read_text() == "a b c"
    assert not any(request.path.endswith("model.bin") for request in s3_proxy.requests)
    assert store.locate("policy/1").source == str(folder)
    assert (folder / "model.bin").is_file()


def test_a_version_of_a_store_made_anew_is_not_taken_from_the_cache(
    direct: ModelStore, s3_server: S3Server, tmp_path: Path
) -> None:
    publish(direct, seed=1)
    first = Path(direct.locate("policy/1").source)
    other = ModelStore(f"s3://{s3_server.new_bucket()}/models", cache=tmp_path / "direct-cache")
    publish(other, seed=2)
    second = Path(other.locate("policy/1").source)
    assert (first / "model.bin").read_bytes() != (second / "model.bin").read_bytes()


@pytest.mark.parametrize("how", ["stored", "on the way"])
def test_damage_is_found_and_not_kept(
    store: ModelStore,
    direct: ModelStore,
    s3_proxy: FaultyProxy,
    s3_server: S3Server,
    s3_bucket: str,
    how: str,
) -> None:
    publish(direct)
    path = f"/{s3_bucket}/models/policy/000001/model.bin"
    if how == "stored":
        s3_server.request("PUT", path, b"\1" * 999 + b"\2").close()
    else:
        s3_proxy.plan = lambda request: Fault(damage=request.path == path and request.method == "GET")
    for look in (lambda: store.locate("policy/1"), lambda: store.verify(store.resolve("policy/1"))):
        with pytest.raises(DataLossError) as caught:
            look()
        assert caught.value.reason == "MODEL_DAMAGED"
        assert caught.value.metadata["file"] == "model.bin"
    s3_proxy.plan = lambda request: None
    s3_server.request("PUT", path, b"\1" * 1000).close()
    assert (Path(store.locate("policy/1").source) / "model.bin").read_bytes() == b"\1" * 1000


def test_a_file_that_is_gone_or_was_added_is_found(
    direct: ModelStore, s3_server: S3Server, s3_bucket: str
) -> None:
    publish(direct)
    stored = direct.resolve("policy/1")
    s3_server.request("PUT", f"/{s3_bucket}/models/policy/000001/extra", b"x").close()
    with pytest.raises(DataLossError) as caught:
        direct.verify(stored)
    assert caught.value.metadata["file"] == "extra"
    s3_server.request("DELETE", f"/{s3_bucket}/models/policy/000001/extra").close()
    s3_server.request("DELETE", f"/{s3_bucket}/models/policy/000001/nested/vocabulary.txt").close()
    for look in (lambda: direct.verify(stored), lambda: direct.locate("policy/1")):
        with pytest.raises(DataLossError) as caught:
            look()
        assert caught.value.metadata["file"] == "nested/vocabulary.txt"


def test_a_manifest_cannot_lead_out_of_the_cache(
    direct: ModelStore, s3_server: S3Server, s3_bucket: str
) -> None:
    publish(direct)
    path = f"/{s3_bucket}/models/policy/000001/manifest.json"
    with s3_server.request("GET", path) as answer:
        manifest = json.loads(answer.read())
    for bad in ("../../../../escaped", "/tmp/escaped", ""):
        manifest["files"][0]["path"] = bad
        s3_server.request("PUT", path, json.dumps(manifest).encode()).close()
        with pytest.raises(DataLossError) as caught:
            direct.locate("policy/1")
        assert caught.value.reason == "MODEL_DAMAGED"


def test_a_cache_that_cannot_be_written(direct: ModelStore, uri: str, tmp_path: Path) -> None:
    publish(direct)
    (tmp_path / "file").touch()
    with pytest.raises(StoreRefusedError) as caught:
        ModelStore(uri, cache=tmp_path / "file").locate("policy/1")
    assert caught.value.reason == "STORE_CACHE_UNUSABLE"


def test_names_of_files_come_back_as_they_were(direct: ModelStore) -> None:
    odd = ["a b.txt", "100%.txt", "x#y?z.txt", "größe.txt", "[1].txt", "a~b.txt", "new/a&b=c.txt"]

    def write(folder: Path) -> None:
        weights()(folder)
        (folder / "new").mkdir()
        for name in odd:
            (folder / name).write_text(name)

    stored = direct.publish("policy", write, manifest=DRAFT)
    direct.verify(stored)
    folder = Path(direct.locate("policy/1").source)
    assert [(folder / name).read_text() for name in odd] == odd


# --- servers that cannot be used ---


@pytest.mark.parametrize("ignored", ["all", "if-match", "501"])
def test_a_server_without_conditional_writes_is_refused(
    store: ModelStore, s3_proxy: FaultyProxy, s3_server: S3Server, s3_bucket: str, ignored: str
) -> None:
    writes = 0

    def plan(request: Request) -> Fault | None:
        nonlocal writes
        if not request.conditional:
            return None
        if ignored == "501":
            return Fault(status=501, code="NotImplemented")
        writes += 1
        # Creating comes first, twice; then comes the condition on a tag.
        return Fault(unconditional=ignored == "all" or writes > 2)

    s3_proxy.plan = plan
    for attempt in (
        store.check_writable,
        lambda: publish(store),
        lambda: store.reserve_versions("policy", 1, run_id="run-1"),
    ):
        writes = 0 if ".conditional-writes" not in "".join(keys(s3_server, s3_bucket)) else 1
        with pytest.raises(StoreRefusedError) as caught:
            attempt()
        assert caught.value.reason == "STORE_WITHOUT_CONDITIONS"
    assert set(keys(s3_server, s3_bucket)) <= {"models/.conditional-writes"}


def test_wrong_credentials(direct: ModelStore, s3_server: S3Server) -> None:
    publish(direct)
    with s3_server.only_known_credentials():
        for attempt in (
            lambda: direct.resolve("policy/1"),
            direct.list,
            direct.aliases,
            lambda: direct.locate("policy/1"),
            lambda: publish(direct),
            lambda: direct.set_alias("policy@stable", "policy/1"),
        ):
            with pytest.raises(StoreRefusedError) as caught:
                attempt()
            assert caught.value.reason == "STORE_DENIED"
            assert caught.value.metadata["status"] == "403"
            assert SECRET not in f"{caught.value} {caught.value.metadata}"
            assert caught.value.__cause__ is None


def test_no_credentials(
    uri: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, impatient: None, closed_port: int
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(StoreRefusedError, match="no credentials") as caught:
        ModelStore(uri).resolve("policy/1")
    assert caught.value.reason == "STORE_DENIED"


def test_an_endpoint_that_nobody_listens_on(
    uri: str, monkeypatch: pytest.MonkeyPatch, impatient: None, closed_port: int
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    store = ModelStore(uri)
    for attempt in (lambda: store.resolve("policy/1"), store.list, lambda: publish(store)):
        with pytest.raises(StoreUnreachableError) as caught:
            attempt()
        assert caught.value.reason == "STORE_UNREACHABLE"


def test_a_server_that_never_recovers(impatient: None, store: ModelStore, s3_proxy: FaultyProxy) -> None:
    s3_proxy.plan = lambda request: Fault(status=503, code="SlowDown")
    with pytest.raises(StoreUnreachableError, match="503 SlowDown"):
        store.resolve("policy/1")


def test_a_bucket_that_does_not_exist(s3_bucket: str) -> None:
    store = ModelStore("s3://there-is-no-such-bucket/models")
    for attempt in (
        lambda: store.resolve("policy/1"),
        store.list,
        store.aliases,
        store.check_writable,
        lambda: store.set_alias("policy@stable", "policy/1"),
    ):
        with pytest.raises(StoreRefusedError) as caught:
            attempt()
        assert caught.value.reason == "STORE_BUCKET_MISSING"


def test_plain_text_must_be_allowed(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreRefusedError) as caught:
        ModelStore(uri)
    assert caught.value.reason == "STORE_NOT_ENCRYPTED"


@pytest.mark.parametrize(
    "place",
    [
        "",
        "s3://",
        "s3:/bucket/x",
        "s3://Bucket/x",
        "s3://bucket/../x",
        "s3://bucket//x",
        "s3://bucket/a b",
        "s3://user:secret@bucket/x",
        "s3://bucket/x?y",
        "gs://bucket/x",
        "http://bucket/x",
    ],
)
def test_places_that_are_none(place: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ModelStore(place)
    assert caught.value.reason == "INVALID_STORE"


def test_other_prefixes_in_the_bucket_are_no_families(
    direct: ModelStore, s3_server: S3Server, s3_bucket: str
) -> None:
    assert direct.list() == []
    draft = ManifestDraft(kind="causal_lm")
    stored = direct.publish("sft", weights(), manifest=draft)
    s3_server.request("PUT", f"/{s3_bucket}/models/Backup/000001/manifest.json", b"{}").close()
    s3_server.request("PUT", f"/{s3_bucket}/models/sft/notes/x", b"{}").close()
    assert direct.list() == [stored]
