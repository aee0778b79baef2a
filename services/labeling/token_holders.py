"""Who holds which bearer token: rows of the database, and a file for tokens that exist before any account.

The file is a YAML or JSON list of ``{name, role, token}`` or ``{name, role, token_sha256}``, as ``andon up``
and a Kubernetes Secret write it. It is read again when it changes. One that breaks while the service runs
leaves the tokens as they were; one that is gone leaves none.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path

import structlog
import yaml

from andon.errors import FailedPreconditionError
from andon.rpc.auth import Caller, hash_token
from services.labeling.accounts import Role, check_user_name
from services.labeling.errors import InvalidFieldError
from services.labeling.threads import DatabaseThreads
from services.labeling.token_store import TokenStore

MIN_TOKEN_CHARS = 16

_SHA256 = re.compile(r"[0-9a-f]{64}")

_log = structlog.stdlib.get_logger(__name__)


class TokensInDatabase:
    """Tokens that ``andon label token`` and the site have made."""

    def __init__(self, tokens: TokenStore, threads: DatabaseThreads) -> None:
        self._tokens = tokens
        self._threads = threads

    async def caller_of(self, token_sha256: str) -> Caller | None:
        """The holder, while the token is good and its account is open."""
        found = await self._threads.read(lambda: self._tokens.find(token_sha256))
        return None if found is None else Caller(name=found.name, role=found.role)


class TokensInFile:
    """Tokens that whoever runs the service has written down."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holders: Mapping[str, Caller] = {}
        self._version: tuple[int, int, int] | None = None

    def read(self) -> None:
        """Read the file. Raises FailedPreconditionError TOKENS_FILE when it is missing or wrong."""
        self._version = _version(self._path)
        self._holders = read_tokens_file(self._path)

    async def caller_of(self, token_sha256: str) -> Caller | None:
        """The holder as the file says now."""
        version = _version(self._path)
        if version != self._version:
            self._version = version
            self._read_again()
        return self._holders.get(token_sha256)

    def _read_again(self) -> None:
        if self._version is None:
            self._holders = {}
            _log.warning("tokens_file_gone", path=str(self._path))
            return
        try:
            self._holders = read_tokens_file(self._path)
            _log.info("tokens_file_read", path=str(self._path), tokens=len(self._holders))
        except FailedPreconditionError as error:
            _log.warning("tokens_file_refused", error=error.message)


def read_tokens_file(path: Path) -> dict[str, Caller]:
    """The holders by the SHA-256 of their tokens. Errors never hold a token."""
    try:
        mode = path.stat().st_mode
        if mode & stat.S_IRWXO:
            raise _error(path, "can be used by everybody on this machine; chmod o= it (in Kubernetes: 0440)")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _error(path, f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError):
        # What is wrong is not told: it would quote the file.
        raise _error(path, "is neither YAML nor JSON") from None
    if not isinstance(content, list):
        raise _error(path, "must be a list of {name, role, token or token_sha256}")
    holders: dict[str, Caller] = {}
    for number, entry in enumerate(content, 1):
        token_sha256, caller = _entry(path, number, entry)
        if token_sha256 in holders:
            raise _error(path, f"entry {number} repeats a token")
        holders[token_sha256] = caller
    return holders


def _entry(path: Path, number: int, entry: object) -> tuple[str, Caller]:
    where = f"entry {number}"
    if not isinstance(entry, dict) or not set(entry) <= {"name", "role", "token", "token_sha256"}:
        raise _error(path, f"{where} is not {{name, role, token or token_sha256}}")
    name, role = entry.get("name"), entry.get("role")
    token, token_sha256 = entry.get("token"), entry.get("token_sha256")
    if role not in list(Role):
        raise _error(path, f"{where}: the role must be one of {', '.join(Role)}")
    try:
        check_user_name(name if isinstance(name, str) else "")
    except InvalidFieldError as error:
        raise _error(path, f"{where}: {error.message}") from None
    if (token is None) == (token_sha256 is None):
        raise _error(path, f"{where} needs either token or token_sha256")
    if token is not None:
        if not isinstance(token, str) or len(token) < MIN_TOKEN_CHARS or not token.isascii():
            raise _error(path, f"{where}: a token has at least {MIN_TOKEN_CHARS} ASCII characters")
        token_sha256 = hash_token(token.strip())
    if not isinstance(token_sha256, str) or _SHA256.fullmatch(token_sha256) is None:
        raise _error(path, f"{where}: token_sha256 is 64 lower-case hexadecimal digits")
    return token_sha256, Caller(name=str(name), role=Role(role))


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _error(path: Path, problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"tokens file {path} {problem}", reason="TOKENS_FILE", path=path)
