"""Decides whether a response contains a stop text, and where its text is cut.

Tokens are turned into text while sampling only for calls that gave stop texts. The engine keeps one matcher
per such sequence; the servicer cuts the finished text with the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

# A match may begin this many characters before the part of the text that is looked at again; it covers tokens
# whose text depends on what stands before them (leading spaces, characters of several tokens).
MARGIN_CHARACTERS = 16


def cut_at_stop(text: str, stop_texts: Sequence[str]) -> tuple[str, bool]:
    """The text before the first match of any stop text, and whether there was one."""
    starts = [start for stop_text in stop_texts if (start := text.find(stop_text)) >= 0]
    return (text[: min(starts)], True) if starts else (text, False)


class StopTextMatcher:
    """Watches one growing response.

    Only the tail of the response is turned into text at each token, so the work per token does not grow with
    the response's length. A match in the tail is confirmed on the whole text.
    """

    def __init__(self, stop_texts: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self._stop_texts = tuple(stop_texts)
        self._decode = decode
        self._token_ids: list[int] = []
        self._tail_start = 0
        self._tail_characters = max(map(len, self._stop_texts)) + MARGIN_CHARACTERS

    def push(self, token_id: int) -> bool:
        """Take the next token; True when the response now contains a stop text."""
        self._token_ids.append(token_id)
        tail = self._token_ids[self._tail_start :]
        text = self._decode(tail)
        if cut_at_stop(text, self._stop_texts)[1]:
            return cut_at_stop(self._decode(self._token_ids), self._stop_texts)[1]
        # Move the tail on once its second half alone is long enough to hold any match that may still come.
        half = len(tail) // 2
        if len(text) > 2 * self._tail_characters and len(self._decode(tail[half:])) >= self._tail_characters:
            self._tail_start += half
        return False
