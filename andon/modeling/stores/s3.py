"""Keeps a model store in a bucket of S3: the folder's layout, with conditional writes in place of locks.

* A version exists when its ``manifest.json`` does, which is put last and only where there is none: a writer
  that dies leaves objects that nobody sees.
* Numbers come from ``counters/<family>.json``, which is replaced only by whoever read it last. A writer that
  dies after that leaves a hole in the numbers.
* A reservation is put only where the run has none.
* ``family@latest`` is replaced only by whoever read it last, so a slow writer does not move it back.

Readers need no right to write, and nothing here ever lists more than one family or one version.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import structlog

from andon.errors import DataLossError
from andon.modeling.errors import StoreUnreachableError
from andon.modeling.manifest import StoredFile
from andon.modeling.stores.bucket import CONDITIONAL_TRIES, Bucket, pause
from andon.modeling.stores.cache import VersionCache
from andon.modeling.stores.files import MANIFEST_NAME, Pointer, describe_folder
from andon.modeling.stores.location import S3Location
from andon.modeling.stores.reservations import read_reservation
from andon.modeling.versions import is_family

_PARALLEL_READS = 8

_log = structlog.stdlib.get_logger(__name__)


class S3Files:
    """A ``files.StoreFiles``."""

    def __init__(self, location: S3Location, cache: Path) -> None:
        """``cache``: a folder of this machine for versions that are loaded. Opens no connection."""
        self._bucket = Bucket(location)
        self._cache = VersionCache(cache)
        self._conditions_checked = False

    @property
    def location(self) -> str:
        """The URI."""
        return str(self._bucket.location)

    def check_readable(self) -> None:
        """One listing. Raises StoreRefusedError, StoreUnreachableError."""
        self._bucket.folders("")

    def check_writable(self) -> None:
        """One object is written, once for each store. Raises StoreRefusedError, StoreUnreachableError."""
        if not self._conditions_checked:
            self._bucket.check_conditional_writes()
            self._conditions_checked = True

    # --- reading -------------------------------------------------------------------------------------------

    def families(self) -> Sequence[str]:
        """Prefixes that may be families."""
        return [name for name in self._bucket.folders("") if is_family(name)]

    def manifests(self, family: str) -> Iterator[tuple[int, bytes]]:
        """Several at a time. Numbers without a manifest are versions in the making, or of dead writers."""
        numbers = self._begun(family)
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            found = pool.map(lambda number: self.manifest(family, number), numbers)
            for number, manifest in zip(numbers, found, strict=True):
                if manifest is not None:
                    yield number, manifest

    def manifest(self, family: str, number: int) -> bytes | None:
        """The object."""
        found = self._bucket.read(f"{_version_key(family, number)}/{MANIFEST_NAME}")
        return None if found is None else found.body

    def version_location(self, family: str, number: int) -> str:
        """A URI."""
        return f"{self.location}/{_version_key(family, number)}"

    def describe(self, family: str, number: int) -> Iterator[StoredFile]:
        """Reads every object; nothing is kept on this machine."""
        prefix = f"{_version_key(family, number)}/"
        for key in self._bucket.keys(prefix):
            path = key.removeprefix(prefix)
            if path == MANIFEST_NAME:
                continue
            sha256, size_bytes = hashlib.sha256(), 0
            for part in self._bucket.stream(key):
                sha256.update(part)
                size_bytes += len(part)
            yield StoredFile(path=path, size_bytes=size_bytes, sha256=sha256.hexdigest())

    def fetch(self, family: str, number: int, manifest: bytes, files: Sequence[StoredFile]) -> Path:
        """From the cache, or downloaded into it."""
        place = _version_key(family, number)
        progress = _Progress("version_downloading", model=f"{family}/{number}", files=files)

        def download(file: StoredFile, path: Path) -> None:
            try:
                self._bucket.download(f"{place}/{file.path}", path, on_bytes=progress.add)
            except KeyError as error:
                raise DataLossError(
                    f"{family}/{number}: {file.path} is gone",
                    reason="MODEL_DAMAGED",
                    model=f"{family}/{number}",
                    file=file.path,
                ) from error

        return self._cache.fetch(place, manifest, files, download)

    def alias(self, name: str) -> Pointer | None:
        """The object and its tag."""
        found = self._bucket.read(f"aliases/{name}")
        return None if found is None else Pointer(text=found.body.decode().strip(), tag=found.tag)

    def aliases(self) -> dict[str, str]:
        """One request for each."""
        names = [key.removeprefix("aliases/") for key in self._bucket.keys("aliases/")]
        read = {name: self.alias(name) for name in names}
        return {name: pointer.text for name, pointer in read.items() if pointer is not None}

    def reservation(self, family: str, run_id: str) -> bytes | None:
        """The run's object."""
        found = self._bucket.read(_reservation_key(family, run_id))
        return None if found is None else found.body

    def reservations(self, family: str) -> Iterator[bytes]:
        """One request for each."""
        for key in self._bucket.keys(f"reservations/{family}/"):
            found = self._bucket.read(key)
            if found is not None:
                yield found.body

    # --- writing -------------------------------------------------------------------------------------------

    def exclusive(self) -> AbstractContextManager[None]:
        """Others write at the same time; conditions keep one from undoing what another did."""
        return nullcontext()

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """In the folder for temporary files, which must have room for a version."""
        self.check_writable()  # before a model is written for nothing
        with tempfile.TemporaryDirectory(prefix="andon-version-") as folder:
            yield Path(folder)

    def draw(self, family: str, count: int) -> int:
        """Move the family's counter on; the numbers are this caller's from then on, used or not."""
        self.check_writable()
        key = f"counters/{family}.json"
        for attempt in range(CONDITIONAL_TRIES):
            present = self._bucket.read(key)
            # The counter knows; the look at the versions is for a store that was restored without it.
            first = max([0, *self._begun(family)]) + 1
            if present is None:
                taken = [read_reservation(text).numbers[-1] for text in self.reservations(family)]
                first = max([first - 1, *taken]) + 1
            else:
                first = max(first, _next_in(present.body, key))
            body = json.dumps({"next": first + count, "drawn_by": uuid.uuid4().hex}).encode()
            if self._bucket.put_if(key, body, over=None if present is None else present.tag):
                return first
            pause(attempt)
        raise StoreUnreachableError(
            f"{self.location}: other writers were faster {CONDITIONAL_TRIES} times",
            reason="STORE_BUSY",
            store=self.location,
            family=family,
        )

    def add_version(self, family: str, number: int, folder: Path) -> bool:
        """Upload all files, then the manifest.

        A number belongs to one run. Files under it without a manifest are of an attempt of the same run that
        died, and are replaced.
        """
        if self.manifest(family, number) is not None:
            return False
        prefix = f"{_version_key(family, number)}/"
        files = list(describe_folder(folder))
        for leftover in set(self._bucket.keys(prefix)) - {prefix + file.path for file in files}:
            self._bucket.delete(leftover)
        progress = _Progress("version_uploading", model=f"{family}/{number}", files=files)
        for file in files:
            self._bucket.upload(
                prefix + file.path, folder / file.path, sha256=file.sha256, on_bytes=progress.add
            )
        return self._bucket.put_if(prefix + MANIFEST_NAME, (folder / MANIFEST_NAME).read_bytes(), over=None)

    def set_alias(self, name: str, text: str) -> None:
        """The last one to write it wins."""
        self._bucket.put(f"aliases/{name}", f"{text}\n".encode())

    def move_alias(self, name: str, text: str, *, over: Pointer | None) -> bool:
        """By the tag."""
        tag = None if over is None else over.tag
        return self._bucket.put_if(f"aliases/{name}", f"{text}\n".encode(), over=tag)

    def add_reservation(self, family: str, run_id: str, text: bytes) -> bytes:
        """The first to write it wins; the numbers of another become a hole."""
        if self._bucket.put_if(_reservation_key(family, run_id), text, over=None):
            return text
        recorded = self.reservation(family, run_id)
        if recorded is None:
            raise DataLossError(
                f"the reservation of {run_id} is gone", reason="RESERVATION_DAMAGED", run_id=run_id
            )
        return recorded

    def _begun(self, family: str) -> list[int]:
        """Numbers with any object, in order."""
        return sorted(int(name) for name in self._bucket.folders(family) if name.isdecimal())


class _Progress:
    """Logs each tenth of the bytes that a version moves, from the first part on."""

    def __init__(self, event: str, *, model: str, files: Sequence[StoredFile]) -> None:
        self._event, self._model = event, model
        self._total_bytes = sum(file.size_bytes for file in files)
        self._done_bytes = 0

    def add(self, size_bytes: int) -> None:
        """So many more bytes are over."""
        before = self._tenths()
        self._done_bytes += size_bytes
        if self._tenths() > before:
            _log.info(
                self._event, model=self._model, done_bytes=self._done_bytes, total_bytes=self._total_bytes
            )

    def _tenths(self) -> int:
        return self._done_bytes * 10 // max(1, self._total_bytes)


def _version_key(family: str, number: int) -> str:
    return f"{family}/{number:06d}"


def _reservation_key(family: str, run_id: str) -> str:
    return f"reservations/{family}/{run_id}.json"


def _next_in(counter: bytes, key: str) -> int:
    try:
        return int(json.loads(counter)["next"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataLossError(f"{key} is damaged: {error!r}", reason="COUNTER_DAMAGED", file=key) from error
