"""How a long list of items is cut into calls."""

from hypothesis import given
from hypothesis import strategies as st

from andon.client import batches
from andon.client.batches import item_batches, item_bytes

texts = st.text(max_size=6)
token_ids = st.lists(st.integers(0, 2**31 - 1), max_size=5)
items = st.lists(st.tuples(st.one_of(texts, token_ids), st.lists(st.one_of(texts, token_ids), max_size=3)))


@given(items)
def test_nothing_is_lost_or_reordered(given_items: list) -> None:
    assert [item for batch in item_batches(given_items) for item in batch] == given_items


def test_an_empty_list_is_one_empty_call() -> None:
    assert list(item_batches([])) == [[]]


def test_no_call_has_more_items_than_the_limit() -> None:
    parts = list(item_batches([("a", ["b"])] * (2 * batches.MAX_ITEMS_PER_CALL + 1)))
    assert [len(part) for part in parts] == [512, 512, 1]


def test_large_items_travel_in_calls_of_their_own() -> None:
    large = ("x" * (batches.MAX_CALL_BYTES + 1), ["y"])
    small = ("x", ["y"])
    assert [len(part) for part in item_batches([small, large, small, small])] == [1, 1, 2]


def test_bytes_are_those_of_utf8_and_of_the_longest_token_ids() -> None:
    assert item_bytes(("ä", ["abc", [1, 2]])) == 2 + 3 + 10
