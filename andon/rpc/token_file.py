"""Who holds which bearer token, by a file that whoever runs the service has written.

The file is a YAML or JSON list of ``{name, role, sha256}``; the SHA-256 is the token's, in hexadecimal, so
that a copy of the file lets nobody in. It is read again when it changes. One that breaks while the service
runs leaves the tokens as they were; one that is gone leaves none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import structlog
import yaml

from andon.errors import InvalidArgumentError
from andon.rpc.auth import Caller
from andon.rpc.file_versions import files_version
from andon.rpc.roles import EVERYBODY

MAX_NAME_CHARS = 64
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEYS = {"name", "role", "sha256"}

_log = structlog.stdlib.get_logger("andon.rpc")


class TokenFile:
    """The holders in one file."""

    def __init__(self, path: Path) -> None:
        """Reads the file. Raises InvalidArgumentError TOKENS_FILE when it is missing or wrong."""
        self._path = path
        self._version = files_version(path)
        self._holders: Mapping[str, Caller] = read_token_file(path)

    async def caller_of(self, token_sha256: str) -> Caller | None:
        """The holder as the file says now."""
        version = files_version(self._path)
        if version != self._version:
            self._version = version
            self._read_again()
        return self._holders.get(token_sha256)

    def _read_again(self) -> None:
        if self._version == (None,):
            self._holders = {}
            _log.warning("tokens_file_gone", path=str(self._path))
            return
        try:
            self._holders = read_token_file(self._path)
            _log.info("tokens_file_read", path=str(self._path), tokens=len(self._holders))
        except InvalidArgumentError as error:
            _log.warning("tokens_file_refused", error=error.message)


def read_token_file(path: Path) -> dict[str, Caller]:
    """The holders by the SHA-256 of their tokens. Errors quote nothing of the file but roles.

    Raises InvalidArgumentError TOKENS_FILE.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _error(path, f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError):
        raise _error(path, "is neither YAML nor JSON") from None
    if not isinstance(content, list) or not content:
        raise _error(path, "must be a list of {name, role, sha256}")
    holders: dict[str, Caller] = {}
    for number, entry in enumerate(content, 1):
        if not isinstance(entry, dict) or set(entry) != _KEYS:
            raise _error(path, f"entry {number} is not {{name, role, sha256}}")
        name, role, sha256 = entry["name"], entry["role"], entry["sha256"]
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
            raise _error(path, f"entry {number}: a name has 1 to {MAX_NAME_CHARS} printable characters")
        if not isinstance(role, str) or role not in EVERYBODY:
            raise _error(path, f"entry {number}: the role must be one of {', '.join(sorted(EVERYBODY))}")
        if not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
            raise _error(path, f"entry {number}: sha256 is 64 lower-case hexadecimal digits")
        if sha256 in holders:
            raise _error(path, f"entry {number} repeats a token")
        holders[sha256] = Caller(name=name, role=role)
    return holders


def _error(path: Path, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"tokens file {path} {problem}", reason="TOKENS_FILE", path=path)
