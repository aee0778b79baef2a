"""Who may have an account, which passwords are good enough, and how often a sign-in may fail.

Pure rules over plain values. ``account_store`` and ``session_store`` keep what they speak of, ``passwords``
hashes. Of every secret only its SHA-256 is kept: secrets are 256 random bits, so a plain hash is enough and
finding one takes the same time whatever is asked.
"""

from __future__ import annotations

import enum
import hashlib
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from services.labeling.errors import InvalidFieldError
from services.labeling.limits import check_labeler

MAX_NAME_CHARS = 200
MIN_PASSWORD_CHARS = 10
MAX_PASSWORD_CHARS = 200

_SECOND_US = 1_000_000
_DAY_US = 86_400 * _SECOND_US
DEFAULT_INVITATION_US = 7 * _DAY_US
MAX_INVITATION_US = 90 * _DAY_US
PASSWORD_LINK_US = 2 * _DAY_US
DEFAULT_TOKEN_US = 365 * _DAY_US
MAX_TOKEN_US = 3650 * _DAY_US


class Role(enum.StrEnum):
    """What somebody may do."""

    LABELER = "labeler"
    RESEARCHER = "researcher"
    ADMIN = "admin"
    SERVICE = "service"


# People sign in; a service only has a token.
ROLES_OF_PEOPLE = frozenset({Role.LABELER, Role.RESEARCHER, Role.ADMIN})


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An account."""

    name: str  # the labeler_id of their answers
    role: Role
    is_closed: bool
    create_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureLimit:
    """How many sign-ins may fail within a window that begins with the first failure."""

    max_failures: int
    window_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """What is known about failed sign-ins of one kind."""

    num_failures: int
    window_start_us: int


# One address trying one account; one address trying anything (an office shares one); and everybody trying
# one account. The last does not hold for addresses from which the account was signed in to before: else a
# stranger with many addresses could keep its owner out.
PAIR_LIMIT = FailureLimit(max_failures=10, window_us=15 * 60 * _SECOND_US)
ADDRESS_LIMIT = FailureLimit(max_failures=30, window_us=15 * 60 * _SECOND_US)
ACCOUNT_LIMIT = FailureLimit(max_failures=100, window_us=15 * 60 * _SECOND_US)
FAILURE_WINDOW_US = 15 * 60 * _SECOND_US
KNOWN_ADDRESS_US = 90 * _DAY_US


def new_secret() -> str:
    """256 random bits in letters that need no quoting in a link or a header."""
    return secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """SHA-256 of a secret, as hexadecimal: what is kept of it."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def check_person_role(role: Role) -> None:
    """A person is a labeler, a researcher or an admin."""
    if role not in ROLES_OF_PEOPLE:
        raise InvalidFieldError(
            "a person is a labeler, researcher or admin", reason="INVALID_ROLE", field="role"
        )


def may_invite(inviter: Role, invited: Role) -> bool:
    """Admins invite anybody, researchers labelers."""
    return inviter is Role.ADMIN or (inviter is Role.RESEARCHER and invited is Role.LABELER)


def check_user_name(name: str) -> None:
    """An account's name is a labeler's id."""
    try:
        check_labeler(name)
    except InvalidFieldError as error:
        raise InvalidFieldError(
            "1 to 200 letters, digits, '.', '_', '-' or '@'", reason=error.reason, field="name"
        ) from None


def is_user_name(name: str) -> bool:
    """Whether there can be an account of this name; not every text can even be looked up."""
    try:
        check_labeler(name)
    except InvalidFieldError:
        return False
    return True


def normal_password(password: str) -> str:
    """The password in the one form that is hashed, however the keyboard composed its letters."""
    return unicodedata.normalize("NFKC", password)


def check_new_password(password: str, *, name: str) -> None:
    """A new password is long enough, storable and not the account's name."""
    normal = normal_password(password)
    problem = None
    if len(normal) < MIN_PASSWORD_CHARS:
        problem = f"at least {MIN_PASSWORD_CHARS} characters"
    elif len(normal) > MAX_PASSWORD_CHARS or len(password) > MAX_PASSWORD_CHARS:
        problem = f"at most {MAX_PASSWORD_CHARS} characters"
    elif normal.casefold() == name.casefold():
        problem = "must not be your name"
    elif len(set(normal)) < 3:
        problem = "must not repeat one or two characters"
    if problem is not None:
        raise InvalidFieldError(problem, reason="WEAK_PASSWORD", field="password")


def lifetime_us(wanted_us: int | None, *, default_us: int, max_us: int) -> int:
    """How long an invitation or a token is good for."""
    if wanted_us is None:
        return default_us
    if not 0 < wanted_us <= max_us:
        raise InvalidFieldError(
            f"more than nothing and at most {max_us // _DAY_US} days",
            reason="INVALID_DURATION",
            field="lifetime",
        )
    return wanted_us


def wait_us(known: Sequence[tuple[Failures | None, FailureLimit]], *, now_us: int) -> int:
    """How long a caller with these failures has to wait before the next attempt; 0 when not at all."""
    waits = [0]
    for failures, limit in known:
        if failures is None or failures.num_failures < limit.max_failures:
            continue
        waits.append(failures.window_start_us + limit.window_us - now_us)
    return max(waits)


def after_failure(failures: Failures | None, *, now_us: int) -> Failures:
    """The count after one more failure; a window that is over is forgotten."""
    if failures is None or now_us >= failures.window_start_us + FAILURE_WINDOW_US:
        return Failures(num_failures=1, window_start_us=now_us)
    return Failures(num_failures=failures.num_failures + 1, window_start_us=failures.window_start_us)
