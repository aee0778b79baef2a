"""What holds for a model store in a folder, beside all that ``contract/test_model_store`` says."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from andon.errors import DataLossError, InvalidArgumentError
from andon.modeling.store import ModelStore
from tests.store_models import DRAFT, weights


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def test_a_versions_folder_is_a_name(store: ModelStore) -> None:
    stored = store.publish("sft", weights(), manifest=DRAFT)
    assert store.resolve(str(stored.path)) == stored
    located = store.locate(str(stored.path))
    assert (located.source, located.stored) == (str(stored.path), stored)


def test_other_folders_in_the_store_are_no_families(store: ModelStore) -> None:
    assert store.list() == []
    stored = store.publish("sft", weights(), manifest=DRAFT)
    (store.root / "Backup of sft").mkdir()
    assert store.list() == [stored]


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


def test_a_writer_killed_at_any_moment_leaves_no_half_version(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = ModelStore(root)
    chance = random.Random(0)
    for _ in range(8):
        seen = len(store.list())
        writer = subprocess.Popen(
            [sys.executable, "-m", "tests.store_writer", str(root)],
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
