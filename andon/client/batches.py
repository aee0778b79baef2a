"""Decides how a large list of (prompt, responses) items is cut into calls that one message can carry.

Used where the answer to an item does not depend on the other items: scoring and reference log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from andon.client.values import TextOrIds

Item = tuple[TextOrIds, Sequence[TextOrIds]]

MAX_ITEMS_PER_CALL = 512
MAX_CALL_BYTES = (
    8 * 1024 * 1024
)  # well under the 64 MiB of a message; log-probabilities come back as 4 bytes a token


def item_bytes(item: Item) -> int:
    """About how many bytes an item takes in a message: 5 per token id is the most a positive int32 needs."""
    prompt, responses = item
    return sum(
        len(part.encode()) if isinstance(part, str) else 5 * len(part) for part in (prompt, *responses)
    )


def item_batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Consecutive slices of the items, in order; an item that is too large by itself travels alone."""
    start, size_bytes = 0, 0
    for index, item in enumerate(items):
        this_bytes = item_bytes(item)
        full = index - start >= MAX_ITEMS_PER_CALL or size_bytes + this_bytes > MAX_CALL_BYTES
        if full and index > start:
            yield items[start:index]
            start, size_bytes = index, 0
        size_bytes += this_bytes
    # An empty list is sent as it is: what to say about it is the service's to decide.
    yield items[start:]
