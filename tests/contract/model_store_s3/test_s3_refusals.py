"""Buckets, servers and places that a model store cannot use, and what it says of each."""

import pytest

from andon.errors import InvalidArgumentError
from andon.modeling.errors import StoreRefusedError, StoreUnreachableError
from andon.modeling.store import ModelStore
from tests.s3_server import Fault, FaultyProxy, Request, S3Server, environment
from tests.store_models import publish

SECRET = environment("")["AWS_SECRET_ACCESS_KEY"]


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
        writes = 0 if ".conditional-writes" not in "".join(s3_server.keys(s3_bucket)) else 1
        with pytest.raises(StoreRefusedError) as caught:
            attempt()
        assert caught.value.reason == "STORE_WITHOUT_CONDITIONS"
    assert set(s3_server.keys(s3_bucket)) <= {"models/.conditional-writes"}


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
