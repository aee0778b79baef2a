"""What a packed row is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The sizes of a prompt and of the responses to it, in tokens; all lie one after the other in the row."""

    prompt_tokens: int
    response_tokens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """All tokens of the tree."""
        return self.prompt_tokens + sum(self.response_tokens)
