"""Stop texts: the matcher agrees with a search in the whole text after each token."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from services.policy.stopping import StopTextMatcher, cut_at_stop

PIECES = ("", "a", "b", "ab", " a", "\n", "ba", "bba ")


def decode(ids: Sequence[int]) -> str:
    """Pieces put together; a leading blank is dropped, as tokenizers do."""
    return "".join(PIECES[index] for index in ids).removeprefix(" ")


def test_text_is_cut_before_the_first_match() -> None:
    assert cut_at_stop("one. two; three", (";", ". ")) == ("one", True)
    assert cut_at_stop("one", (";",)) == ("one", False)
    assert cut_at_stop("one", ()) == ("one", False)


@given(
    token_ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=300),
    stop_texts=st.lists(st.text("ab \n", min_size=1, max_size=6), min_size=1, max_size=3),
)
def test_matches_where_the_whole_text_does(token_ids: list[int], stop_texts: list[str]) -> None:
    matcher = StopTextMatcher(stop_texts, decode)
    for count, token_id in enumerate(token_ids, start=1):
        expected = any(stop_text in decode(token_ids[:count]) for stop_text in stop_texts)
        assert matcher.push(token_id) == expected
        if expected:
            return


def test_work_per_token_does_not_grow_with_the_response() -> None:
    decoded: list[int] = []

    def counting(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return "x" * len(ids)

    matcher = StopTextMatcher(["stop"], counting)
    for _ in range(1000):
        assert not matcher.push(0)
    assert max(decoded) < 100
