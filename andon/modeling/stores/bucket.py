"""How the store speaks with an S3 server: small objects, conditional writes, large files in parts.

``obstore`` signs, repeats what may be repeated and finds credentials; its failures become errors with reasons
here. They never carry the server's own text, which may quote a request, only its status and code.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from andon.errors import AndonError
from andon.modeling.errors import StoreRefusedError, StoreUnreachableError
from andon.modeling.stores.location import S3Location

if TYPE_CHECKING:
    from obstore import PutMode

PART_BYTES = 16 * 1024 * 1024  # of large files; S3 takes at most 10,000 parts
PARALLEL_PARTS = 8
REQUEST_TIMEOUT = timedelta(seconds=120)  # for one request, its body included
RETRY_TIMEOUT = timedelta(seconds=60)  # during which a failed request is repeated
RETRIES = 5
LOST_ANSWER_TRIES = 3
CONDITIONAL_TRIES = 30  # of one change that others get in the way of
_LONGEST_PAUSE_S = 1.0

_PROBE_KEY = ".conditional-writes"
_PROBE = b"Andon writes this object when it finds out whether the server honours conditional writes.\n"
_STATUS = re.compile(r"status code: (\d{3})")
_TRANSIENT = frozenset({"408", "429", "500", "502", "503", "504"})
_CODE = re.compile(r"<Code>(\w+)</Code>")
# What is asked for credentials when the environment has none: a cloud's machine, its containers, its STS.
_CREDENTIAL_PLACES = ("/latest/api/token", "/latest/meta-data", "//169.254.170.", "AssumeRoleWithWebIdentity")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallObject:
    """An object that was read whole; ``tag`` is its ETag."""

    body: bytes
    tag: str


class Bucket:
    """The objects of a bucket below a prefix; keys here are without it."""

    def __init__(self, location: S3Location) -> None:
        """Opens no connection. Raises StoreRefusedError STORE_NOT_ENCRYPTED, STORE_REFUSED."""
        self.location = location
        allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")
        if not allow_http:
            _refuse_plain_text(location)
        try:
            self._objects = S3Store(
                location.bucket,
                prefix=location.prefix or None,
                client_options={"timeout": REQUEST_TIMEOUT, "allow_http": allow_http},
                retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_TIMEOUT},
            )
        except (BaseError, ValueError) as error:
            raise self._error(error) from None

    # --- reading -------------------------------------------------------------------------------------------

    def read(self, key: str) -> SmallObject | None:
        """A small object; None where there is none."""
        with self._failures():
            try:
                answer = obstore.get(self._objects, key)
                return SmallObject(body=bytes(answer.bytes()), tag=answer.meta["e_tag"] or "")
            except FileNotFoundError as error:
                self._refuse_missing_bucket(error)
                return None

    def folders(self, prefix: str) -> list[str]:
        """Last parts of the common prefixes one level below, in order."""
        with self._failures():
            found = obstore.list_with_delimiter(self._objects, prefix or None)
        return sorted(path.rsplit("/", 1)[-1] for path in found["common_prefixes"])

    def keys(self, prefix: str) -> list[str]:
        """All keys below a prefix, in order."""
        with self._failures():
            return sorted(meta["path"] for batch in obstore.list(self._objects, prefix) for meta in batch)

    def stream(self, key: str) -> Iterator[bytes]:
        """A large object from beginning to end. Raises KeyError where there is none."""
        size_bytes = self._size_bytes(key)
        for start in range(0, size_bytes, PART_BYTES):
            yield self._part(key, start, min(start + PART_BYTES, size_bytes))

    def download(self, key: str, path: Path, *, on_bytes: Callable[[int], None]) -> None:
        """A large object into a new file, several parts at a time. Raises KeyError where there is none."""
        size_bytes = self._size_bytes(key)
        with path.open("xb") as file:
            descriptor = file.fileno()

            def bring(start: int) -> int:
                part = self._part(key, start, min(start + PART_BYTES, size_bytes))
                return os.pwrite(descriptor, part, start)

            with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
                for written in pool.map(bring, range(0, size_bytes, PART_BYTES)):
                    on_bytes(written)

    def _size_bytes(self, key: str) -> int:
        with self._failures():
            try:
                return obstore.head(self._objects, key)["size"]
            except FileNotFoundError:
                raise KeyError(key) from None

    def _part(self, key: str, start: int, end: int) -> bytes:
        with self._failures():
            try:
                return bytes(obstore.get_range(self._objects, key, start=start, end=end))
            except FileNotFoundError:
                raise KeyError(key) from None

    # --- writing -------------------------------------------------------------------------------------------

    def put(self, key: str, body: bytes) -> None:
        """A small object, whatever is there now."""
        self._put(key, body, "overwrite")

    def put_if(self, key: str, body: bytes, *, over: str | None) -> bool:
        """A small object, only over the one with this tag, or None: only where there is none.

        False where there is another. ``body`` must be unlike any that another writer would put there with
        the same meaning: that is how a write is known whose answer was lost.
        """
        mode: PutMode = "create" if over is None else {"e_tag": over}
        attempt = 0
        while True:
            try:
                self._put(key, body, mode)
                return True
            except (AlreadyExistsError, PreconditionError):
                present = self.read(key)
                return present is not None and present.body == body
            except StoreUnreachableError:
                # The library does not repeat a write with a condition, for it cannot know what a lost answer
                # said. Here the next answer tells.
                attempt += 1
                if attempt >= LOST_ANSWER_TRIES:
                    raise
            pause(attempt)

    def upload(self, key: str, path: Path, *, sha256: str, on_bytes: Callable[[int], None]) -> None:
        """A file, in parts when it is large."""
        attributes = {"sha256": sha256}
        with self._failures(), path.open("rb") as file:
            if path.stat().st_size <= PART_BYTES:
                body = file.read()
                obstore.put(self._objects, key, body, attributes=attributes, use_multipart=False)
                on_bytes(len(body))
                return

            def parts() -> Iterator[bytes]:
                while part := file.read(PART_BYTES):
                    yield part
                    on_bytes(len(part))

            obstore.put(
                self._objects,
                key,
                parts(),
                attributes=attributes,
                chunk_size=PART_BYTES,
                max_concurrency=PARALLEL_PARTS,
            )

    def delete(self, key: str) -> None:
        """One object."""
        with self._failures():
            obstore.delete(self._objects, key)

    def check_conditional_writes(self) -> None:
        """Try both kinds of condition on an object of its own.

        Raises StoreRefusedError STORE_WITHOUT_CONDITIONS: two writers would overwrite each other's versions.
        """
        try:
            honoured = (
                not self._try(_PROBE_KEY, "create") or not self._try(_PROBE_KEY, "create")
            ) and not self._try(_PROBE_KEY, {"e_tag": '"00000000000000000000000000000000"'})
        except StoreRefusedError as error:
            if error.metadata.get("status") not in ("400", "501"):
                raise
            honoured = False
        if not honoured:
            raise StoreRefusedError(
                f"{self.location}: the server does not honour conditional writes (If-None-Match and If-Match "
                "of PutObject), without which two writers could take the same number",
                reason="STORE_WITHOUT_CONDITIONS",
                store=self.location,
            )

    def _try(self, key: str, mode: PutMode) -> bool:
        try:
            self._put(key, _PROBE, mode)
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    def _put(self, key: str, body: bytes, mode: PutMode) -> None:
        with self._failures():
            obstore.put(self._objects, key, body, mode=mode, use_multipart=False)

    # --- failures ------------------------------------------------------------------------------------------

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (AlreadyExistsError, PreconditionError) as error:
            self._refuse_missing_bucket(error)
            raise
        except (BaseError, FileNotFoundError) as error:
            raise self._error(error) from None

    def _refuse_missing_bucket(self, error: Exception) -> None:
        if "<Code>NoSuchBucket</Code>" in str(error):
            raise self._error(error) from None

    def _error(self, error: Exception) -> AndonError:
        text = str(error)
        status, code = _STATUS.search(text), _CODE.search(text)
        facts = {
            "store": str(self.location),
            "status": status[1] if status else "",
            "code": code[1] if code else "",
        }
        answer = " ".join(fact for fact in (facts["status"], facts["code"]) if fact)
        if any(place in text for place in _CREDENTIAL_PLACES):
            return StoreRefusedError(
                f"{self.location}: there are no credentials: neither AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, nor a web identity, nor a role of this machine",
                reason="STORE_DENIED",
                **facts,
            )
        if facts["code"] == "NoSuchBucket":
            return StoreRefusedError(
                f"{self.location}: there is no such bucket", reason="STORE_BUCKET_MISSING", **facts
            )
        if facts["status"] in ("401", "403"):
            return StoreRefusedError(
                f"{self.location}: the server denies this to these credentials ({answer})",
                reason="STORE_DENIED",
                **facts,
            )
        may_pass = facts["status"] in ("408", "429") or (
            facts["status"] >= "500" and facts["status"] != "501"
        )
        if status is None or may_pass:
            cause = answer or _first_line(text)
            return StoreUnreachableError(f"{self.location} cannot be reached: {cause}", **facts)
        return StoreRefusedError(
            f"{self.location}: the server refuses the request ({answer})", reason="STORE_REFUSED", **facts
        )


def pause(attempt: int) -> None:
    """Let others go first, longer each time and never as long as they do."""
    time.sleep(random.uniform(0.0, min(_LONGEST_PAUSE_S, 0.02 * 2**attempt)))


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0][:300]


def _refuse_plain_text(location: S3Location) -> None:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if endpoint.startswith("http://"):
        raise StoreRefusedError(
            f"{location}: {endpoint} is not encrypted; set AWS_ALLOW_HTTP=true if the network is protected "
            "by other means",
            reason="STORE_NOT_ENCRYPTED",
            store=location,
        )
