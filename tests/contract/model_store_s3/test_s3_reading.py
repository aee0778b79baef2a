"""Reading from a bucket: parts, the cache, damage, names."""

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from andon.errors import DataLossError
from andon.modeling.errors import StoreRefusedError
from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import WEIGHTS_NAME, ModelStore
from andon.modeling.stores import bucket as bucket_module
from tests.s3_server import Fault, FaultyProxy, S3Server
from tests.store_models import DRAFT, publish, weights


def test_readers_never_write(store: ModelStore, direct: ModelStore, s3_proxy: FaultyProxy) -> None:
    publish(direct)
    direct.reserve_versions("policy", 2, run_id="run-1")
    store.verify(store.locate("policy@latest").stored or store.resolve("policy/1"))
    store.list()
    store.aliases()
    store.lineage("policy/2")
    assert {request.method for request in s3_proxy.requests} == {"GET", "HEAD"}


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


def test_other_prefixes_in_the_bucket_are_no_families(
    direct: ModelStore, s3_server: S3Server, s3_bucket: str
) -> None:
    assert direct.list() == []
    draft = ManifestDraft(kind="causal_lm")
    stored = direct.publish("sft", weights(), manifest=draft)
    s3_server.request("PUT", f"/{s3_bucket}/models/Backup/000001/manifest.json", b"{}").close()
    s3_server.request("PUT", f"/{s3_bucket}/models/sft/notes/x", b"{}").close()
    assert direct.list() == [stored]
