"""Decides which group a labeler belongs to: by a hash of their id, the same in every database and export.

Used by the labeling service, which exports by group, and by the command line, which says what that left out.
"""

from __future__ import annotations

import hashlib


def labeler_fold(labeler_id: str, *, num_folds: int) -> int:
    """The labeler's group, 0 .. ``num_folds`` - 1."""
    digest = hashlib.sha256(labeler_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % num_folds
