import hashlib
import json
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from andon.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from andon.modeling.manifest import DataUse, Lineage, ManifestDraft, Parent
from andon.modeling.normalization import Normalization
from andon.modeling.store import WEIGHTS_NAME, LineageNode, ModelStore
from andon.modeling.versions import ModelVersion

DRAFT = ManifestDraft(kind="causal_lm", run_id="run-1")


def weights(seed: int = 0) -> Callable[[Path], None]:
    """Writes a pretended model whose weights are ``seed``."""

    def write(folder: Path) -> None:
        (folder / "model.bin").write_bytes(bytes([seed]) * 1000)
        (folder / "nested").mkdir()
        (folder / "nested" / "vocabulary.txt").write_text("a b c")
        digest = hashlib.sha256(bytes([seed])).hexdigest()
        (folder / WEIGHTS_NAME).write_text(json.dumps({"weights_sha256": digest}))

    return write


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def test_versions_count_from_one_and_latest_follows(store: ModelStore) -> None:
    first = store.publish("sft", weights(1), manifest=DRAFT)
    second = store.publish("sft", weights(2), manifest=DRAFT)
    assert [str(first.version), str(second.version)] == ["sft/1", "sft/2"]
    assert store.resolve("sft@latest").version == second.version
    assert store.resolve("sft/1").version == first.version
    assert store.resolve(str(first.path)).version == first.version
    assert [stored.version for stored in store.list("sft")] == [first.version, second.version]
    assert (first.path / "nested" / "vocabulary.txt").read_text() == "a b c"
    assert first.path.name == "000001"


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


def test_other_folders_in_the_store_are_no_families(store: ModelStore) -> None:
    assert store.list() == []
    stored = store.publish("sft", weights(), manifest=DRAFT)
    (store.root / "Backup of sft").mkdir()
    assert store.list() == [stored]


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


def test_a_changed_missing_or_added_file_is_found(store: ModelStore) -> None:
    stored = store.publish("sft", weights(), manifest=DRAFT)
    store.verify(stored)
    model = stored.path / "model.bin"
    assert model.stat().st_mode & 0o222 == 0
    content = model.read_bytes()
    model.chmod(0o644)
    for damage in (content[:-1], content[:-1] + b"x"):
        model.write_bytes(damage)
        with pytest.raises(DataLossError) as caught:
            store.verify(stored)
        assert caught.value.metadata["file"] == "model.bin"
    model.write_bytes(content)
    (stored.path / "extra").touch()
    with pytest.raises(DataLossError):
        store.verify(stored)
    (stored.path / "extra").unlink()
    store.verify(stored)
    (stored.path / "manifest.json").chmod(0o644)
    (stored.path / "manifest.json").write_text("{")
    with pytest.raises(DataLossError) as caught:
        store.resolve("sft/1")
    assert caught.value.reason == "MODEL_DAMAGED"


def test_a_failed_write_leaves_nothing(store: ModelStore) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        store.publish("sft", fail, manifest=DRAFT)
    with pytest.raises(InvalidArgumentError):
        store.publish("sft", lambda folder: None, manifest=DRAFT)  # no weights at all
    assert store.list() == []
    assert list((store.root / ".incoming").iterdir()) == []
    assert store.publish("sft", weights(), manifest=DRAFT).version.version == 1


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


def test_a_writer_killed_at_any_moment_leaves_no_half_version(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = ModelStore(root)
    chance = random.Random(0)
    for _ in range(8):
        seen = len(store.list())
        writer = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("store_writer.py")), str(root)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "started\n"
        # Kill after a random amount of its work, seen from outside, without looking at a clock.
        for _ in range(chance.randrange(200, 4000)):
            if len(list(root.glob("policy/*"))) > seen + 3:
                break
        writer.kill()
        writer.wait()
        writer.stdout.close()
        for stored in store.list():
            store.verify(stored)
        if stored_versions := store.list("policy"):
            assert store.resolve("policy@latest").version.version >= len(stored_versions) - 1
    leftovers = [path for path in (root / ".incoming").iterdir() if path.is_dir()]
    published = store.publish("policy", weights(), manifest=DRAFT)
    assert published.version.version == len(store.list("policy"))
    assert list((root / ".incoming").iterdir()) == [], leftovers


def test_the_folder_of_a_living_writer_is_left_alone(store: ModelStore) -> None:
    def write_while_another_publishes(folder: Path) -> None:
        weights(1)(folder)
        store.publish("sft", weights(2), manifest=DRAFT)
        assert (folder / "model.bin").is_file()

    outer = store.publish("sft", write_while_another_publishes, manifest=DRAFT)
    assert outer.version.version == 2


def test_a_dead_writers_folder_is_removed(store: ModelStore) -> None:
    store.publish("sft", weights(), manifest=DRAFT)
    dead = store.root / ".incoming" / "dead"
    shutil.copytree(store.root / "sft", dead / "model")
    (dead / "writer.lock").touch()  # nobody holds it
    store.publish("sft", weights(), manifest=DRAFT)
    assert not dead.exists()
