"""Whom a provider vouches for, as the account store takes it."""

from __future__ import annotations

from dataclasses import dataclass

from services.labeling.accounts import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Somebody whom the provider vouches for."""

    issuer: str
    subject: str  # theirs for ever, at this issuer
    wanted_name: str  # of a new account; may be taken, may be empty
    email: str | None
    role: Role
