"""Decides with which token a command calls the labeling service: ANDON_TOKEN or ANDON_TOKEN_FILE over the
home's own.

``andon up`` makes ``tokens.json`` in its home once, for its owner's eyes only: "admin" for the commands on
this machine and "service" for the trainer and the canary's controller. The labeling service reads the same
file. A token of a home is never sent to another machine, and no token ever stands on a command line.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from andon.cli.endpoints import home_folder
from andon.client.connection import TOKEN_FILE_VARIABLE, TOKEN_VARIABLE
from andon.errors import InvalidArgumentError
from andon.rpc.loopback import is_loopback

TOKENS_FILE = "tokens.json"
ADMIN = "admin"
SERVICE = "service"
TRAINER_VARIABLE = "ANDON_TRAINER_LABELING_TOKEN"
CANARY_VARIABLE = "ANDON_CANARY_LABELING_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTokens:
    """The tokens of one home."""

    admin: str
    service: str


def tokens_path(home: Path) -> Path:
    """Where a home keeps its tokens."""
    return home / TOKENS_FILE


def make_tokens(home: Path) -> LocalTokens:
    """The home's tokens, made now if there are none."""
    path = tokens_path(home)
    known = read_tokens(home)
    if known is not None:
        return known
    made = LocalTokens(admin=secrets.token_urlsafe(32), service=secrets.token_urlsafe(32))
    entries = [
        {"name": ADMIN, "role": "admin", "token": made.admin},
        {"name": SERVICE, "role": "service", "token": made.service},
    ]
    temporary = path.with_name(f".{TOKENS_FILE}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    # Exclusively and with its mode from the first moment: nobody else ever reads it.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(entries, indent=2) + "\n")
    temporary.replace(path)
    return made


def read_tokens(home: Path) -> LocalTokens | None:
    """The home's tokens; None where none were made. Raises InvalidArgumentError INVALID_TOKENS."""
    path = tokens_path(home)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        by_name = {entry["name"]: entry["token"] for entry in entries}
        return LocalTokens(admin=str(by_name[ADMIN]), service=str(by_name[SERVICE]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise InvalidArgumentError(
            f"{path} does not hold the tokens {ADMIN} and {SERVICE}; remove it and start `andon up` again",
            reason="INVALID_TOKENS",
        ) from None


def find_token(target: str, *, home: Path | None = None) -> str | None:
    """The home's token for the labeling service at ``target``; None where none is known, and where the
    environment names a token, which clients take by themselves.
    """
    return None if has_own_name() else home_token(target, home=home)


def home_token(target: str, *, home: Path | None = None) -> str | None:
    """The admin's token of the home, for a service on this machine."""
    if not is_loopback(target.rpartition(":")[0]):
        return None
    known = read_tokens(home_folder(home))
    return None if known is None else known.admin


def has_own_name() -> bool:
    """Whether the caller's token names the caller, so that commands need not."""
    return bool(os.environ.get(TOKEN_VARIABLE) or os.environ.get(TOKEN_FILE_VARIABLE))
