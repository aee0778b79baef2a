"""Decides where models lie, when a version becomes visible, and which numbers are taken.

Layout of a store::

    sft/000001/             a version in Hugging Face format with manifest.json; it never changes
    aliases/sft@latest      a movable name: the version's name as text
    reservations/policy/    numbers taken by runs for versions that only samplers may ever see

It is a folder that all processes mount, or a bucket of S3; ``stores`` keeps the bytes and sees to it that a
writer killed at any moment leaves no half version, and that two writers never get the same number. The
training stages publish, the services and the command line read. Loading weights is left to ``loading``;
nothing here needs torch.
"""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from andon.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from andon.modeling.errors import StoreRefusedError, StoreUnreachableError
from andon.modeling.manifest import (
    Lineage,
    Manifest,
    ManifestDraft,
    version_from_name,
)
from andon.modeling.stores.cache import default_cache_folder
from andon.modeling.stores.files import MANIFEST_NAME, Pointer, StoreFiles, describe_folder
from andon.modeling.stores.folder import FolderFiles, read_manifest
from andon.modeling.stores.location import parse_location
from andon.modeling.stores.reservations import Reservation, read_reservation
from andon.modeling.versions import (
    ModelAlias,
    ModelSource,
    ModelVersion,
    check_family,
    parse_model_name,
)

WEIGHTS_NAME = "andon_weights.json"  # written beside the weights by loading.save_model; holds their digest
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_ALIAS_TRIES = 30
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_LINEAGE = Lineage()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A version that lies in the store."""

    version: ModelVersion
    location: str  # its folder, or its URI
    manifest: Manifest

    @property
    def path(self) -> Path:
        """Its folder. Raises FailedPreconditionError NOT_A_FOLDER in a bucket: ``ModelStore.locate`` brings
        the files here.
        """
        if "://" in self.location:
            raise FailedPreconditionError(f"{self.location} is no folder", reason="NOT_A_FOLDER")
        return Path(self.location)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedModel:
    """Where the files of a named model are on this machine; ``stored`` is None for a model from outside the
    store.
    """

    version: ModelVersion
    source: str  # a folder, or a public name
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


class ModelStore:
    """Immutable model versions and movable aliases, in a folder or in a bucket."""

    def __init__(self, location: str | Path, *, cache: Path | None = None) -> None:
        """``location``: a folder or ``s3://bucket/prefix``. ``cache``: this machine's folder for what is
        loaded from a bucket, by default one below the user's cache folder. Opens no connection.

        Raises InvalidArgumentError INVALID_STORE, StoreRefusedError.
        """
        self._files = _open_files(location, cache)

    @property
    def location(self) -> str:
        """The folder or the URI."""
        return self._files.location

    @property
    def root(self) -> Path:
        """The folder. Raises FailedPreconditionError NOT_A_FOLDER for a bucket."""
        if not isinstance(self._files, FolderFiles):
            raise FailedPreconditionError(f"{self.location} is no folder", reason="NOT_A_FOLDER")
        return self._files.root

    def check_readable(self) -> None:
        """Find out now whether there is a store here.

        Raises InvalidArgumentError NO_STORE for a folder that is not there, StoreRefusedError,
        StoreUnreachableError.
        """
        self._files.check_readable()

    def check_writable(self) -> None:
        """Find out now, instead of at the first publication, whether versions can be published here.

        Raises StoreRefusedError, StoreUnreachableError.
        """
        self._files.check_writable()

    # --- reading -------------------------------------------------------------------------------------------

    def resolve(self, name: str | ModelVersion) -> StoredModel:
        """The stored version behind ``policy/12``, ``policy@stable`` or the path of a version's folder.

        Its files stay where they are. Raises InvalidArgumentError INVALID_MODEL_NAME, NotFoundError
        MODEL_NOT_FOUND, DataLossError MODEL_DAMAGED. A version with a digest must match the stored digest.
        """
        parsed = parse_model_name(name) if isinstance(name, str) else name
        stored = self._find(parsed)
        if stored is None:
            raise InvalidArgumentError(
                f"{name} does not name a model of the store: write family/version or family@alias",
                reason="INVALID_MODEL_NAME",
                name=name,
            )
        return stored

    def locate(self, name: str | ModelVersion, *, weights: bool = True) -> LocatedModel:
        """Like ``resolve``, with the files at hand on this machine; folders and public names from outside the
        store pass through unchecked.

        What comes from a bucket is downloaded once, and each file checked against its SHA-256.
        ``weights=False`` spares the files with weights.
        """
        parsed = parse_model_name(name) if isinstance(name, str) else name
        stored = self._find(parsed)
        if stored is None:
            return LocatedModel(version=ModelVersion(str(parsed), 0), source=str(parsed))
        if isinstance(parsed, ModelSource):
            return LocatedModel(version=stored.version, source=stored.location, stored=stored)
        files = [file for file in stored.manifest.files if weights or not file.path.endswith(WEIGHT_SUFFIXES)]
        version = stored.version
        manifest = self._files.manifest(version.family, version.version)
        if manifest is None:
            raise _no_such(version)
        folder = self._files.fetch(version.family, version.version, manifest, files)
        return LocatedModel(version=version, source=str(folder), stored=stored)

    def list(self, family: str | None = None) -> builtins.list[StoredModel]:
        """All stored versions, or those of one family, by family and number."""
        families = self._files.families() if family is None else [check_family(family)]
        return [
            self._stored(name, number, manifest)
            for name in families
            for number, manifest in self._files.manifests(name)
        ]

    def aliases(self) -> dict[str, ModelVersion]:
        """Every alias and the version it names, for example ``{"sft@latest": sft/3}``."""
        return {name: version_from_name(text) for name, text in self._files.aliases().items()}

    def verify(self, stored: StoredModel) -> None:
        """Read every file again; raises DataLossError MODEL_DAMAGED at the first that has changed."""
        version = stored.version
        if stored.location == self._files.version_location(version.family, version.version):
            found = self._files.describe(version.family, version.version)
        else:
            found = describe_folder(stored.path)
        missing = {file.path: file for file in stored.manifest.files}
        for file in found:
            if missing.pop(file.path, None) != file:
                raise _damaged(version, file.path)
        for path in sorted(missing):
            raise _damaged(version, path)

    def lineage(self, name: str | ModelVersion) -> LineageNode:
        """The tree of all that a version was made from; also for reserved versions never stored."""
        parsed = parse_model_name(name) if isinstance(name, str) else name
        if isinstance(parsed, ModelVersion) and not self._has(parsed):
            if self._reservation_of(parsed) is None:
                raise _no_such(parsed)
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
        with self._files.workspace() as folder:
            write(folder)
            weights_sha256 = _weights_sha256(folder)
            files = tuple(describe_folder(folder))
            with self._files.exclusive():
                pointer = self._files.alias(str(ModelAlias(family, "latest")))
                if version is not None:
                    self._check_reserved(ModelVersion(family, version), manifest.run_id)
                number = self._files.draw(family, 1) if version is None else version
                full = Manifest(
                    version=ModelVersion(family, number, weights_sha256),
                    created_time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                    draft=manifest,
                    files=files,
                )
                text = json.dumps(full.to_dict(), indent=2, allow_nan=False) + "\n"
                (folder / MANIFEST_NAME).write_text(text)
                if self._files.add_version(family, number, folder):
                    stored = self._stored(family, number, text.encode())
                else:
                    stored = self._same_weights(full.version)
                self._move_latest(stored, pointer)
        return stored

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
        with self._files.exclusive():
            recorded = self._files.reservation(family, run_id)
            if recorded is None:
                first = self._files.draw(family, count)
                numbers = range(first, first + count)
                reservation = Reservation(run_id=run_id, numbers=numbers, lineage=lineage)
                recorded = self._files.add_reservation(family, run_id, reservation.to_json())
        numbers = read_reservation(recorded).numbers
        if len(numbers) != count:
            raise FailedPreconditionError(
                f"run {run_id} has reserved {len(numbers)} versions of {family}, not {count}",
                reason="RESERVATION_CONFLICT",
                run_id=run_id,
            )
        return numbers

    def set_alias(self, name: str, version: str | ModelVersion) -> StoredModel:
        """Move the alias ``name`` ("policy@stable") to a stored version; ``latest`` is the store's own."""
        alias = parse_model_name(name)
        if not isinstance(alias, ModelAlias) or alias.alias == "latest":
            raise InvalidArgumentError(
                f"{name!r} is not an alias that may be set", reason="INVALID_MODEL_NAME", name=name
            )
        stored = self.resolve(version)
        with self._files.exclusive():
            self._files.set_alias(str(alias), str(stored.version))
        return stored

    # --- decisions -----------------------------------------------------------------------------------------

    def _find(self, parsed: ModelVersion | ModelAlias | ModelSource) -> StoredModel | None:
        """None for a source that is no version's folder."""
        if isinstance(parsed, ModelSource):
            folder = Path(parsed.source)
            if not (folder / MANIFEST_NAME).is_file():
                return None
            manifest = _read_manifest(f"{folder.parent.name}/{folder.name}", read_manifest(folder))
            return StoredModel(version=manifest.version, location=str(folder), manifest=manifest)
        if isinstance(parsed, ModelAlias):
            pointer = self._files.alias(str(parsed))
            if pointer is None:
                raise NotFoundError(
                    f"the store has no alias {parsed}", reason="MODEL_NOT_FOUND", model=parsed
                )
            return self._read_version(version_from_name(pointer.text))
        return self._read_version(parsed)

    def _read_version(self, version: ModelVersion) -> StoredModel:
        manifest = self._files.manifest(check_family(version.family), version.version)
        if manifest is None:
            raise _no_such(version)
        stored = self._stored(version.family, version.version, manifest)
        if version.weights_sha256 not in ("", stored.version.weights_sha256):
            raise NotFoundError(
                f"{version} is stored with other weights than asked for",
                reason="MODEL_NOT_FOUND",
                model=version,
            )
        return stored

    def _stored(self, family: str, number: int, manifest: bytes) -> StoredModel:
        read = _read_manifest(f"{family}/{number}", manifest)
        return StoredModel(
            version=read.version, location=self._files.version_location(family, number), manifest=read
        )

    def _has(self, version: ModelVersion) -> bool:
        return self._files.manifest(check_family(version.family), version.version) is not None

    def _reservation_of(self, version: ModelVersion) -> Reservation | None:
        for text in self._files.reservations(version.family):
            reservation = read_reservation(text)
            if version.version in reservation.numbers:
                return reservation
        return None

    def _check_reserved(self, version: ModelVersion, run_id: str) -> None:
        recorded = self._files.reservation(version.family, run_id) if _RUN_ID.fullmatch(run_id) else None
        if recorded is None or version.version not in read_reservation(recorded).numbers:
            raise FailedPreconditionError(
                f"{version} is not reserved for run {run_id!r}",
                reason="MODEL_VERSION_NOT_RESERVED",
                model=version,
                run_id=run_id,
            )

    def _same_weights(self, version: ModelVersion) -> StoredModel:
        """The version under this number. Raises AlreadyExistsError where its weights are others."""
        existing = self._read_version(ModelVersion(version.family, version.version))
        if existing.version != version:
            raise AlreadyExistsError(
                f"{version} is already stored with other weights",
                reason="MODEL_VERSION_CONFLICT",
                model=version,
            )
        return existing

    def _move_latest(self, stored: StoredModel, pointer: Pointer | None) -> None:
        """Point ``latest`` to a version, unless a later one came since ``pointer`` was read."""
        alias = str(ModelAlias(stored.version.family, "latest"))
        for _ in range(_ALIAS_TRIES):
            if self._files.move_alias(alias, str(stored.version), over=pointer):
                return
            pointer = self._files.alias(alias)
            if pointer is not None:
                other = self._read_version(version_from_name(pointer.text))
                if other.manifest.created_time > stored.manifest.created_time:
                    return
        raise StoreUnreachableError(
            f"{self.location}: other writers moved {alias} {_ALIAS_TRIES} times",
            reason="STORE_BUSY",
            store=self.location,
        )

    def _node(self, role: str, version: ModelVersion, above: frozenset[str]) -> LineageNode:
        lineage, run_id, stored = _NO_LINEAGE, "", False
        if version.version > 0 and self._has(version):
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


def _open_files(location: str | Path, cache: Path | None) -> StoreFiles:
    place = parse_location(location)
    if isinstance(place, Path):
        return FolderFiles(place)
    try:
        # Imported here: only processes with a store on S3 need its library.
        from andon.modeling.stores.s3 import S3Files
    except ModuleNotFoundError as error:
        raise StoreRefusedError(
            f"{place} needs a library that is not installed: pip install 'andon[s3]'",
            reason="STORE_SUPPORT_MISSING",
            store=place,
        ) from error
    return S3Files(place, cache or default_cache_folder())


def _no_such(version: ModelVersion) -> NotFoundError:
    return NotFoundError(f"the store has no {version}", reason="MODEL_NOT_FOUND", model=version)


def _damaged(version: ModelVersion, path: str) -> DataLossError:
    return DataLossError(
        f"{version}: {path} is not as it was published", reason="MODEL_DAMAGED", model=version, file=path
    )


def _read_manifest(name: str, text: bytes) -> Manifest:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataLossError(
            f"the manifest of {name} cannot be read", reason="MODEL_DAMAGED", file=MANIFEST_NAME
        ) from error
    return Manifest.from_dict(values)


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
