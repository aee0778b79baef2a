"""Decides where models lie, when a version becomes visible, and which numbers are taken.

Layout below the root::

    sft/000001/             a version in Hugging Face format with manifest.json; it never changes
    aliases/sft@latest      a movable name: the version's name as text
    reservations/policy/    numbers taken by runs for versions that only samplers may ever see
    .incoming/              folders being written, each held by a lock of its writer

A version becomes visible by the rename of a finished, synced folder, so a writer killed at any moment leaves
no half version. Numbers are drawn under a file lock, which the kernel frees when its holder dies. The
training stages publish, the services and the command line read. Loading weights is left to ``loading``;
nothing here needs torch.
"""

from __future__ import annotations

import builtins
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from andon.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from andon.modeling.manifest import (
    Lineage,
    Manifest,
    ManifestDraft,
    StoredFile,
    lineage_from_dict,
    lineage_to_dict,
    version_from_name,
)
from andon.modeling.versions import (
    ModelAlias,
    ModelSource,
    ModelVersion,
    check_family,
    is_family,
    parse_model_name,
)

MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "andon_weights.json"  # written beside the weights by loading.save_model; holds their digest
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_LINEAGE = Lineage()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A version that lies in the store."""

    version: ModelVersion
    path: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedModel:
    """Where the files of a named model are; ``stored`` is None for a model from outside the store."""

    version: ModelVersion
    source: str
    stored: StoredModel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageNode:
    """A model, what it was made from, and so on to the beginning.

    ``stored`` is False for versions that only samplers saw and for models from outside the store.
    """

    role: str  # what it was to the child; "" at the root
    version: ModelVersion
    stored: bool
    run_id: str
    lineage: Lineage
    parents: tuple[LineageNode, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reservation:
    run_id: str
    numbers: range
    lineage: Lineage


class ModelStore:
    """A folder of immutable model versions and movable aliases."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    # --- reading -------------------------------------------------------------------------------------------

    def resolve(self, name: str | ModelVersion) -> StoredModel:
        """The stored version behind ``policy/12``, ``policy@stable`` or the path of a version's folder.

        Raises InvalidArgumentError INVALID_MODEL_NAME, NotFoundError MODEL_NOT_FOUND, DataLossError
        MODEL_DAMAGED. A version with a digest must match the stored digest.
        """
        located = self.locate(name)
        if located.stored is None:
            raise InvalidArgumentError(
                f"{name} does not name a model of the store: write family/version or family@alias",
                reason="INVALID_MODEL_NAME",
                name=name,
            )
        return located.stored

    def locate(self, name: str | ModelVersion) -> LocatedModel:
        """Like ``resolve``, but folders and public names from outside the store pass through unchecked."""
        parsed = parse_model_name(name) if isinstance(name, str) else name
        if isinstance(parsed, ModelSource):
            manifest_path = Path(parsed.source) / MANIFEST_NAME
            if not manifest_path.is_file():
                return LocatedModel(version=ModelVersion(parsed.source, 0), source=parsed.source)
            stored = _read_stored(manifest_path.parent)
        elif isinstance(parsed, ModelAlias):
            alias_path = self._alias_path(parsed)
            if not alias_path.is_file():
                raise NotFoundError(
                    f"the store has no alias {parsed}", reason="MODEL_NOT_FOUND", model=parsed
                )
            stored = self._read_version(version_from_name(alias_path.read_text().strip()))
        else:
            stored = self._read_version(parsed)
        return LocatedModel(version=stored.version, source=str(stored.path), stored=stored)

    def list(self, family: str | None = None) -> builtins.list[StoredModel]:
        """All stored versions, or those of one family, by family and number."""
        if family is not None:
            return [self._read_version(ModelVersion(family, number)) for number in self._numbers(family)]
        if not self.root.is_dir():
            return []
        families = sorted(path.name for path in self.root.iterdir() if path.is_dir() and is_family(path.name))
        return [stored for name in families for stored in self.list(name)]

    def aliases(self) -> dict[str, ModelVersion]:
        """Every alias and the version it names, for example ``{"sft@latest": sft/3}``."""
        folder = self.root / "aliases"
        if not folder.is_dir():
            return {}
        return {path.name: version_from_name(path.read_text().strip()) for path in sorted(folder.iterdir())}

    def verify(self, stored: StoredModel) -> None:
        """Read every file again; raises DataLossError MODEL_DAMAGED at the first that has changed."""
        expected = {file.path: file for file in stored.manifest.files}
        found = {
            path.relative_to(stored.path).as_posix() for path in stored.path.rglob("*") if path.is_file()
        }
        found.discard(MANIFEST_NAME)
        for path in sorted(expected.keys() | found):
            if (
                path not in found
                or path not in expected
                or _describe_file(stored.path, path) != expected[path]
            ):
                raise DataLossError(
                    f"{stored.version}: {path} is not as it was published",
                    reason="MODEL_DAMAGED",
                    model=stored.version,
                    file=path,
                )

    def lineage(self, name: str | ModelVersion) -> LineageNode:
        """The tree of all that a version was made from; also for reserved versions never stored."""
        parsed = parse_model_name(name) if isinstance(name, str) else name
        if isinstance(parsed, ModelVersion) and parsed.version not in self._numbers(parsed.family):
            reservation = self._reservation_of(parsed)
            if reservation is None:
                raise NotFoundError(f"the store has no {parsed}", reason="MODEL_NOT_FOUND", model=parsed)
            return self._node("", parsed, frozenset())
        return self._node("", self.resolve(name).version, frozenset())

    # --- writing -------------------------------------------------------------------------------------------

    def publish(
        self,
        family: str,
        write: Callable[[Path], None],
        *,
        manifest: ManifestDraft,
        version: int | None = None,
    ) -> StoredModel:
        """Store what ``write`` puts into an empty folder as a new version and move ``family@latest`` to it.

        Without ``version`` the next free number is taken. With it, the number must have been reserved for
        ``manifest.run_id``; publishing the same weights under it again, as a run does that was killed in
        between, gives the stored version, other weights raise AlreadyExistsError MODEL_VERSION_CONFLICT.
        """
        check_family(family)
        with self._incoming_folder() as incoming:
            folder = incoming / "model"
            folder.mkdir()
            write(folder)
            weights_sha256 = _weights_sha256(folder)
            files = _describe_files(folder)
            with self._lock():
                if version is None:
                    number = self._next_number(family)
                elif (existing := self._claim(family, version, manifest, weights_sha256)) is not None:
                    self._write_alias(ModelAlias(family, "latest"), existing.version)
                    return existing
                else:
                    number = version
                target = self._version_path(family, number)
                full = Manifest(
                    version=ModelVersion(family, number, weights_sha256),
                    created_time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                    draft=manifest,
                    files=files,
                )
                _write_json(folder / MANIFEST_NAME, full.to_dict())
                _sync_tree(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(target)  # fails when the target exists: a version is never empty
                _sync_folder(target.parent)
                _sync_folder(self.root)
                self._write_alias(ModelAlias(family, "latest"), full.version)
        return StoredModel(version=full.version, path=target, manifest=full)

    def reserve_versions(
        self, family: str, count: int, *, run_id: str, lineage: Lineage = _NO_LINEAGE
    ) -> range:
        """Take ``count`` numbers that nobody else will get, for versions that only samplers may see.

        The same run gets the same numbers again. Raises FailedPreconditionError RESERVATION_CONFLICT when it
        asks for another count than the first time.
        """
        check_family(family)
        if count < 1 or not _RUN_ID.fullmatch(run_id):
            raise InvalidArgumentError(
                "a reservation needs a count of at least 1 and a run id of letters, digits and '_.:-'",
                reason="INVALID_RESERVATION",
                count=count,
                run_id=run_id,
            )
        path = self.root / "reservations" / family / f"{run_id}.json"
        with self._lock():
            if path.is_file():
                numbers = _read_reservation(path).numbers
                if len(numbers) != count:
                    raise FailedPreconditionError(
                        f"run {run_id} has reserved {len(numbers)} versions of {family}, not {count}",
                        reason="RESERVATION_CONFLICT",
                        run_id=run_id,
                    )
                return numbers
            first = self._next_number(family)
            values = {"run_id": run_id, "first": first, "count": count, **lineage_to_dict(lineage)}
            self._replace_file(path, json.dumps(values, indent=2))
            return range(first, first + count)

    def set_alias(self, name: str, version: str | ModelVersion) -> StoredModel:
        """Move the alias ``name`` ("policy@stable") to a stored version; ``latest`` is the store's own."""
        alias = parse_model_name(name)
        if not isinstance(alias, ModelAlias) or alias.alias == "latest":
            raise InvalidArgumentError(
                f"{name!r} is not an alias that may be set", reason="INVALID_MODEL_NAME", name=name
            )
        stored = self.resolve(version)
        with self._lock():
            self._write_alias(alias, stored.version)
        return stored

    # --- numbers -------------------------------------------------------------------------------------------

    def _numbers(self, family: str) -> builtins.list[int]:
        folder = self.root / check_family(family)
        if not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())

    def _reservations(self, family: str) -> Iterator[_Reservation]:
        folder = self.root / "reservations" / family
        if folder.is_dir():
            for path in sorted(folder.glob("*.json")):
                yield _read_reservation(path)

    def _reservation_of(self, version: ModelVersion) -> _Reservation | None:
        for reservation in self._reservations(version.family):
            if version.version in reservation.numbers:
                return reservation
        return None

    def _next_number(self, family: str) -> int:
        taken = [reservation.numbers[-1] for reservation in self._reservations(family)]
        return max([0, *self._numbers(family), *taken]) + 1

    def _claim(
        self, family: str, number: int, draft: ManifestDraft, weights_sha256: str
    ) -> StoredModel | None:
        """Check that ``number`` may be published; the stored version when the same weights already are."""
        version = ModelVersion(family, number)
        reservation = self._reservation_of(version)
        if reservation is None or reservation.run_id != draft.run_id:
            raise FailedPreconditionError(
                f"{version} is not reserved for run {draft.run_id!r}",
                reason="MODEL_VERSION_NOT_RESERVED",
                model=version,
                run_id=draft.run_id,
            )
        if number not in self._numbers(family):
            return None
        existing = self._read_version(version)
        if existing.version.weights_sha256 != weights_sha256:
            raise AlreadyExistsError(
                f"{version} is already stored with other weights",
                reason="MODEL_VERSION_CONFLICT",
                model=version,
            )
        return existing

    # --- files ---------------------------------------------------------------------------------------------

    def _version_path(self, family: str, number: int) -> Path:
        return self.root / check_family(family) / f"{number:06d}"

    def _read_version(self, version: ModelVersion) -> StoredModel:
        path = self._version_path(version.family, version.version)
        if not path.is_dir():
            raise NotFoundError(f"the store has no {version}", reason="MODEL_NOT_FOUND", model=version)
        stored = _read_stored(path)
        if version.weights_sha256 not in ("", stored.version.weights_sha256):
            raise NotFoundError(
                f"{version} is stored with other weights than asked for",
                reason="MODEL_NOT_FOUND",
                model=version,
            )
        return stored

    def _node(self, role: str, version: ModelVersion, above: frozenset[str]) -> LineageNode:
        lineage, run_id, stored = _NO_LINEAGE, "", False
        if version.version > 0 and version.version in self._numbers(version.family):
            manifest = self._read_version(ModelVersion(version.family, version.version)).manifest
            lineage, run_id, stored = manifest.lineage, manifest.draft.run_id, True
        elif version.version > 0 and (reservation := self._reservation_of(version)) is not None:
            lineage, run_id = reservation.lineage, reservation.run_id
        below = above | {str(version)}
        parents = tuple(
            self._node(parent.role, parent.model, below)
            for parent in lineage.parents
            if str(parent.model) not in below
        )
        return LineageNode(
            role=role, version=version, stored=stored, run_id=run_id, lineage=lineage, parents=parents
        )

    def _alias_path(self, alias: ModelAlias) -> Path:
        return self.root / "aliases" / str(alias)

    def _write_alias(self, alias: ModelAlias, version: ModelVersion) -> None:
        self._replace_file(self._alias_path(alias), f"{version}\n")

    def _replace_file(self, path: Path, text: str) -> None:
        """Write a small file in one step; the caller holds the lock."""
        path.parent.mkdir(parents=True, exist_ok=True)
        incoming = self.root / ".incoming" / f"{uuid.uuid4().hex}.file"
        incoming.parent.mkdir(exist_ok=True)
        try:
            with incoming.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            incoming.rename(path)
        finally:
            incoming.unlink(missing_ok=True)
        _sync_folder(path.parent)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One writer at a time draws numbers and renames."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _incoming_folder(self) -> Iterator[Path]:
        """An empty folder in the store's own file system; what dead writers left is removed on the way."""
        incoming = self.root / ".incoming"
        with self._lock():
            incoming.mkdir(exist_ok=True)
            _remove_leftovers(incoming)
            folder = incoming / uuid.uuid4().hex
            folder.mkdir()
            held = (folder / "writer.lock").open("w")
            fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            # Under the lock: half removed, the folder would look like a dead writer's to the next one.
            with self._lock():
                shutil.rmtree(folder)
            held.close()


def _remove_leftovers(incoming: Path) -> None:
    """Remove what dead writers left, whose locks the kernel has freed; call with the store locked."""
    for path in incoming.iterdir():
        if path.is_file():  # small files are written and renamed under the store's lock, which we hold
            path.unlink()
            continue
        lock = path / "writer.lock"
        if lock.exists():
            with lock.open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # its writer lives
        shutil.rmtree(path, ignore_errors=True)


def _weights_sha256(folder: Path) -> str:
    """The digest that whoever wrote the weights knows: names in files may differ from names in memory."""
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise InvalidArgumentError(
            f"only folders with {WEIGHTS_NAME} can be stored, as loading.save_model writes them",
            reason="MODEL_MALFORMED",
        )
    digest = json.loads(path.read_text()).get("weights_sha256")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise InvalidArgumentError(f"{WEIGHTS_NAME} holds no digest", reason="MODEL_MALFORMED")
    return digest


def _describe_files(folder: Path) -> tuple[StoredFile, ...]:
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(_describe_file(folder, path) for path in paths)


def _describe_file(folder: Path, path: str) -> StoredFile:
    with (folder / path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return StoredFile(path=path, size_bytes=(folder / path).stat().st_size, sha256=sha256)


def _read_stored(path: Path) -> StoredModel:
    try:
        values = json.loads((path / MANIFEST_NAME).read_text())
    except (OSError, ValueError) as error:
        raise DataLossError(
            f"the manifest of {path.parent.name}/{path.name} cannot be read",
            reason="MODEL_DAMAGED",
            file=MANIFEST_NAME,
        ) from error
    manifest = Manifest.from_dict(values)
    return StoredModel(version=manifest.version, path=path, manifest=manifest)


def _read_reservation(path: Path) -> _Reservation:
    values: dict[str, Any] = json.loads(path.read_text())
    numbers = range(values["first"], values["first"] + values["count"])
    return _Reservation(run_id=values["run_id"], numbers=numbers, lineage=lineage_from_dict(values))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


def _sync_tree(folder: Path) -> None:
    """Bring every file and folder to the disk and make the files read-only, for versions never change."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(0o444)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
