"""Decides on which side of a split something stands: by a hash of its name, never by its place in a file.

The same key lands on the same side in any order, in any file and in every later export, as long as the seed
and the shares stay. The shares are met in expectation; with few keys they are off by chance.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from andon.errors import InvalidArgumentError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


class InvalidSplitError(InvalidArgumentError):
    """These shares do not split anything."""

    default_reason = "INVALID_SPLIT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Named shares that sum to 1, in their order."""

    shares: Mapping[str, float]  # 0..1, none is 0
    seed: int = 0

    def side(self, key: str) -> str:
        """The name of the side that the key stands on."""
        digest = hashlib.sha256(f"{self.seed}\n{key}".encode("utf-8", "surrogatepass")).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64
        end = 0.0
        for name, share in self.shares.items():
            end += share
            if point < end:
                return name
        return name  # the shares sum to a hair under 1


def make_split(shares: Mapping[str, float], *, seed: int = 0) -> Split:
    """A split by these shares; a share of 0 is left out. Raises InvalidSplitError."""
    for name, share in shares.items():
        if not _NAME.fullmatch(name):
            raise InvalidSplitError(
                f"{name!r} is no name of a split: letters, digits, '-' and '_', at most 32"
            )
        if not 0 <= share <= 1:  # also not a number
            raise InvalidSplitError(f"the share of {name} must be 0..1, not {share}")
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise InvalidSplitError(f"the shares must sum to 1, not {sum(shares.values()):.6g}")
    return Split(shares={name: share for name, share in shares.items() if share > 0}, seed=seed)


def parse_split(text: str, *, seed: int = 0) -> Split:
    """A split written as ``train=0.9,validation=0.1``. Raises InvalidSplitError."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition("=")
        try:
            number = float(share)
        except ValueError as error:
            raise InvalidSplitError(f"{part.strip()!r} is not NAME=SHARE") from error
        if name in shares:
            raise InvalidSplitError(f"{name} is named twice")
        shares[name] = number
    return make_split(shares, seed=seed)
