"""Decides how long a text is, in tokens of a stated tokenizer.

A limit such as "24 to 48 tokens" means nothing without the tokenizer, so every counter has a name for the
manifest. Words and marks by a regular expression are the default: they need nothing and mean the same
everywhere. Stiennon et al. counted tokens of GPT-2, of which a text has more.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Protocol

from andon.corpus.errors import SourceNotFoundError
from andon.corpus.manifest import Json
from andon.errors import FailedPreconditionError, InvalidArgumentError

_WORDS_AND_MARKS = r"\w+(?:['’]\w+)*|[^\w\s]"


class TokenCounter(Protocol):
    """Says how many tokens a text has."""

    @property
    def description(self) -> dict[str, Json]:
        """What is counted, for the manifest."""
        ...

    def count(self, text: str) -> int:
        """Tokens of the text, without any that a model would add at its ends."""
        ...


class WordCounter:
    """Counts words and single marks; "don't" is one word."""

    description: dict[str, Json] = {"tokenizer": "words and marks", "pattern": _WORDS_AND_MARKS}  # noqa: RUF012

    def __init__(self) -> None:
        self._find_all = re.compile(_WORDS_AND_MARKS).findall

    def count(self, text: str) -> int:
        """Words and marks of the text."""
        return len(self._find_all(text))


class TokenizerCounter:
    """Counts the tokens of a Hugging Face tokenizer."""

    def __init__(self, name: str) -> None:
        """``name`` is a ``tokenizer.json``, a folder with one, or a name on the Hugging Face hub.

        Raises SourceNotFoundError, InvalidArgumentError for a broken file, or FailedPreconditionError when
        ``tokenizers`` is not installed.
        """
        try:
            from tokenizers import Tokenizer  # late: only who asks for it needs it
        except ImportError as error:
            raise FailedPreconditionError(
                "--tokenizer needs the package tokenizers", reason="PACKAGE_MISSING"
            ) from error
        path = Path(name).expanduser()
        if path.is_dir():
            path = path / "tokenizer.json"
        try:
            self._tokenizer = (
                Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(name)
            )
        except Exception as error:
            if path.is_file():
                raise InvalidArgumentError(
                    f"{path} is no tokenizer: {error}", reason="BROKEN_TOKENIZER"
                ) from error
            raise SourceNotFoundError(name, f"no tokenizer there: {error}") from error
        # A file may ask for a cut or for padding; both would falsify the count.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.description: dict[str, Json] = {
            "tokenizer": name,
            "sha256": hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest(),
        }

    def count(self, text: str) -> int:
        """Tokens of the text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
