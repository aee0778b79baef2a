"""What holds for every model store, in a folder and in a bucket."""

import hashlib
import threading
from pathlib import Path

import pytest

from andon.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from andon.modeling.manifest import DataUse, Lineage, ManifestDraft, Parent
from andon.modeling.normalization import Normalization
from andon.modeling.store import WEIGHTS_NAME, LineageNode, ModelStore
from andon.modeling.versions import ModelVersion
from tests.store_models import DRAFT, weights


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ModelStore:
    if request.param == "folder":
        return ModelStore(tmp_path / "store")
    return ModelStore(f"s3://{request.getfixturevalue('s3_bucket')}/some/prefix")


def test_versions_count_from_one_and_latest_follows(store: ModelStore) -> None:
    first = store.publish("sft", weights(1), manifest=DRAFT)
    second = store.publish("sft", weights(2), manifest=DRAFT)
    assert [str(first.version), str(second.version)] == ["sft/1", "sft/2"]
    assert store.resolve("sft@latest").version == second.version
    assert store.resolve("sft/1").version == first.version
    assert [stored.version for stored in store.list("sft")] == [first.version, second.version]
    folder = Path(store.locate("sft/1").source)
    assert (folder / "nested" / "vocabulary.txt").read_text() == "a b c"
    assert folder.parts[-2:] == ("sft", "000001")
    assert first.location.endswith("/sft/000001")


def test_everything_in_the_manifest_comes_back(store: ModelStore) -> None:
    draft = ManifestDraft(
        kind="reward_model",
        parents=(Parent(role="base", model=ModelVersion("sft", 1, "f" * 64)),),
        data=(DataUse(kind="comparisons", uri="labeling:b1", count=10, first_id="c1", last_id="c9"),),
        run_id="run-7",
        step=120,
        metrics={"accuracy": 0.75},
        config={"epochs": 1, "nested": {"a": [1, 2]}},
        normalization=Normalization(method="reference_zero", bias=-0.5),
    )
    published = store.publish("reward", weights(), manifest=draft)
    read = store.resolve("reward/1")
    assert read == published
    assert read.manifest.draft == draft
    assert {file.path for file in read.manifest.files} == {
        "model.bin",
        "nested/vocabulary.txt",
        WEIGHTS_NAME,
    }
    by_path = {file.path: file for file in read.manifest.files}
    assert by_path["model.bin"].sha256 == hashlib.sha256(bytes(1000)).hexdigest()
    assert by_path["model.bin"].size_bytes == 1000


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("sft/9", NotFoundError, "MODEL_NOT_FOUND"),
        ("sft@stable", NotFoundError, "MODEL_NOT_FOUND"),
        ("gpt2", InvalidArgumentError, "INVALID_MODEL_NAME"),
        ("", InvalidArgumentError, "INVALID_MODEL_NAME"),
        (ModelVersion("sft", 1, "0" * 64), NotFoundError, "MODEL_NOT_FOUND"),
        (ModelVersion("../sft", 1), InvalidArgumentError, "INVALID_MODEL_NAME"),
    ],
)
def test_unknown_names_say_so(
    store: ModelStore, name: str | ModelVersion, error: type[Exception], reason: str
) -> None:
    store.publish("sft", weights(), manifest=DRAFT)
    with pytest.raises(error) as caught:
        store.resolve(name)
    assert caught.value.reason == reason  # type: ignore[attr-defined]


def test_models_from_outside_pass_through(store: ModelStore) -> None:
    located = store.locate("openai-community/gpt2")
    assert (located.source, located.version, located.stored) == (
        "openai-community/gpt2",
        ModelVersion("openai-community/gpt2", 0),
        None,
    )


def test_aliases_move(store: ModelStore) -> None:
    store.publish("policy", weights(1), manifest=DRAFT)
    store.publish("policy", weights(2), manifest=DRAFT)
    store.set_alias("policy@stable", "policy/1")
    assert store.resolve("policy@stable").version.version == 1
    store.set_alias("policy@stable", "policy@latest")
    assert {name: str(version) for name, version in store.aliases().items()} == {
        "policy@latest": "policy/2",
        "policy@stable": "policy/2",
    }
    for name, version in (("policy@latest", "policy/1"), ("policy/1", "policy/1")):
        with pytest.raises(InvalidArgumentError):
            store.set_alias(name, version)
    with pytest.raises(NotFoundError):
        store.set_alias("policy@stable", "policy/3")


def test_concurrent_publishers_get_numbers_of_their_own(store: ModelStore) -> None:
    versions: list[int] = []

    def publish(seed: int) -> None:
        for _ in range(5):
            versions.append(store.publish("policy", weights(seed), manifest=DRAFT).version.version)

    threads = [threading.Thread(target=publish, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == list(range(1, 21))
    for stored in store.list():
        store.verify(stored)


def test_reserved_numbers_are_nobody_elses(store: ModelStore) -> None:
    store.publish("policy", weights(1), manifest=DRAFT)
    assert store.reserve_versions("policy", 10, run_id="run-1") == range(2, 12)
    assert store.reserve_versions("policy", 5, run_id="run-2") == range(12, 17)
    assert store.reserve_versions("policy", 10, run_id="run-1") == range(2, 12)  # again, as after a restart
    with pytest.raises(FailedPreconditionError) as caught:
        store.reserve_versions("policy", 11, run_id="run-1")
    assert caught.value.reason == "RESERVATION_CONFLICT"
    assert store.publish("policy", weights(2), manifest=DRAFT).version.version == 17
    assert store.publish("policy", weights(3), manifest=DRAFT, version=6).version.version == 6
    assert store.resolve("policy@latest").version.version == 6
    with pytest.raises(FailedPreconditionError) as caught:
        store.publish("policy", weights(4), manifest=DRAFT, version=13)  # reserved for run-2
    assert caught.value.reason == "MODEL_VERSION_NOT_RESERVED"
    with pytest.raises(FailedPreconditionError):
        store.publish("policy", weights(4), manifest=DRAFT, version=99)


@pytest.mark.parametrize(("count", "run_id"), [(0, "run"), (1, ""), (1, "../run"), (1, "a/b")])
def test_bad_reservations_are_refused(store: ModelStore, count: int, run_id: str) -> None:
    with pytest.raises(InvalidArgumentError):
        store.reserve_versions("policy", count, run_id=run_id)


def test_publishing_the_same_weights_again_is_no_second_version(store: ModelStore) -> None:
    store.reserve_versions("policy", 3, run_id="run-1")
    first = store.publish("policy", weights(1), manifest=DRAFT, version=2)
    again = store.publish("policy", weights(1), manifest=DRAFT, version=2)
    assert again == first
    with pytest.raises(AlreadyExistsError) as caught:
        store.publish("policy", weights(9), manifest=DRAFT, version=2)
    assert caught.value.reason == "MODEL_VERSION_CONFLICT"
    store.verify(store.resolve("policy/2"))


def test_lineage_goes_back_to_the_labels(store: ModelStore) -> None:
    sft = store.publish("sft", weights(1), manifest=ManifestDraft(kind="causal_lm", run_id="run-sft"))
    labels = DataUse(kind="comparisons", uri="labeling:round-1", count=4000)
    reward = store.publish(
        "reward",
        weights(2),
        manifest=ManifestDraft(
            kind="reward_model", parents=(Parent(role="base", model=sft.version),), data=(labels,)
        ),
    )
    parents = (Parent(role="initial", model=sft.version), Parent(role="reward", model=reward.version))
    prompts = DataUse(kind="prompts", uri="builtin:train", count=100)
    store.reserve_versions("policy", 5, run_id="run-ppo", lineage=Lineage(parents=parents, data=(prompts,)))
    store.publish(
        "policy",
        weights(3),
        manifest=ManifestDraft(kind="causal_lm", run_id="run-ppo", parents=parents, data=(prompts,)),
        version=5,
    )

    def outline(node: LineageNode) -> tuple[object, ...]:
        return (node.role, str(node.version), node.stored, *(outline(parent) for parent in node.parents))

    below = (("initial", "sft/1", True), ("reward", "reward/1", True, ("base", "sft/1", True)))
    assert outline(store.lineage("policy/5")) == ("", "policy/5", True, *below)
    assert outline(store.lineage("policy/3")) == ("", "policy/3", False, *below)  # only samplers saw it
    assert store.lineage("policy/3").run_id == "run-ppo"
    assert store.lineage("policy@latest").parents[1].lineage.data == (labels,)
    with pytest.raises(NotFoundError):
        store.lineage("policy/6")


def test_lineage_names_models_from_outside(store: ModelStore) -> None:
    base = ModelVersion("openai-community/gpt2", 0)
    store.publish(
        "sft",
        weights(),
        manifest=ManifestDraft(kind="causal_lm", parents=(Parent(role="base", model=base),)),
    )
    (parent,) = store.lineage("sft/1").parents
    assert (parent.version, parent.stored, parent.parents) == (base, False, ())
