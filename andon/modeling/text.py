"""Decides how documents and summaries become token ids, and token ids text.

Every service and training stage that meets text uses a ``TextCodec``: a Hugging Face tokenizer and the prompt
template the model was trained with, saved beside the weights. Two codecs with one fingerprint mean the same
by a token id. Special tokens written out in a document or a summary are read as ordinary text, so that nobody
can end a response or forge a prompt from inside a document.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from andon.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

PROMPT_FILE_NAME = "andon_prompt.json"
_PLACE = "{document}"
PAD_TOKEN, UNKNOWN_TOKEN, TLDR_TOKEN, EOS_TOKEN = "<pad>", "<unk>", "<tldr>", "<eos>"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """The text around a document, and how much of the document is read.

    Stiennon et al. (2020) read 512 tokens of a post and end the prompt with "TL;DR:".
    """

    template: str = "{document}\n\nTL;DR:"  # "{document}" stands exactly once
    max_document_tokens: int = 512  # longer documents are cut at the end
    response_prefix: str = " "  # between prompt and summary; belongs to the summary's first token

    def __post_init__(self) -> None:
        if self.template.count(_PLACE) != 1:
            raise InvalidArgumentError(
                'a prompt template holds "{document}" exactly once',
                reason="INVALID_TEMPLATE",
                field="template",
            )
        if self.max_document_tokens < 1:
            raise InvalidArgumentError(
                "max_document_tokens must be at least 1",
                reason="INVALID_TEMPLATE",
                field="max_document_tokens",
            )


class TextCodec:
    """A tokenizer with the prompt template of its model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> None:
        if tokenizer.eos_token_id is None:
            raise FailedPreconditionError(
                "the tokenizer has no end-of-sequence token, so no summary could end", reason="NO_EOS_TOKEN"
            )
        self.tokenizer = tokenizer
        self.template = template
        self.eos_token_id: int = tokenizer.eos_token_id
        self.pad_token_id: int | None = tokenizer.pad_token_id
        self.vocab_size: int = len(tokenizer)
        self._special_ids = frozenset(tokenizer.all_special_ids)
        before, after = template.template.split(_PLACE)
        # The part before carries the beginning-of-sequence token of models that want one.
        self._before = _without_final(tokenizer(before).input_ids, self.eos_token_id)
        self._after: list[int] = tokenizer(after, add_special_tokens=False).input_ids
        self.fingerprint = _fingerprint(tokenizer, template)

    def encode_document(self, document: str) -> list[int]:
        """The prompt for a document: template and document, cut to the template's limit."""
        ids = self._plain_ids(document)[: self.template.max_document_tokens]
        return [*self._before, *ids, *self._after]

    def encode_summary(self, summary: str) -> list[int]:
        """A summary as a finished response: its tokens and the end-of-sequence token."""
        return [*self._plain_ids(self.template.response_prefix + summary.strip()), self.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a response, without special tokens and the blank that joins it to the prompt."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text.removeprefix(self.template.response_prefix)

    def save(self, folder: Path) -> None:
        """Write the tokenizer, in Hugging Face format, and the template."""
        self.tokenizer.save_pretrained(str(folder))
        (folder / PROMPT_FILE_NAME).write_text(json.dumps(asdict(self.template), indent=2) + "\n")

    @classmethod
    def load(cls, source: str | Path) -> TextCodec:
        """Read a folder or public name; without ``andon_prompt.json`` the default template holds.

        Raises NotFoundError MODEL_NOT_FOUND.
        """
        try:
            tokenizer = _tokenizer_class(Path(source)).from_pretrained(str(source))
        except (OSError, ValueError) as error:
            raise NotFoundError(
                f"no tokenizer can be loaded from {source}", reason="MODEL_NOT_FOUND", model=source
            ) from error
        return cls(tokenizer, read_template(Path(source)) or PromptTemplate())

    def with_template(self, template: PromptTemplate) -> TextCodec:
        """The same tokenizer with another template."""
        return TextCodec(self.tokenizer, template)

    def with_pad_token(self) -> TextCodec:
        """A codec whose tokenizer has a padding token of its own, as plain reward models need.

        They read the last token that is not padding; were padding the end-of-sequence token, they would look
        past the end of a finished summary. A missing one is added; the model's embeddings must then grow to
        ``vocab_size``.
        """
        if self.pad_token_id is not None and self.pad_token_id != self.eos_token_id:
            return self
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        return TextCodec(tokenizer, self.template)

    def _plain_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, truncation=False, verbose=False
        ).input_ids
        # Word-level vocabularies find a special token by its spelling all the same.
        special = self._special_ids - {self.tokenizer.unk_token_id}
        if special.isdisjoint(ids):
            return ids
        unknown = self.tokenizer.unk_token_id
        replaced = (unknown if token in special else token for token in ids)
        return [token for token in replaced if token is not None and token != self.eos_token_id]


def _tokenizer_class(folder: Path) -> Any:  # transformers' auto class has no base in common with the others
    """The class to load a tokenizer with.

    For some model types, Qwen2 among them, AutoTokenizer puts the pipeline of that type's own tokenizer in
    place of the one in ``tokenizer.json``. A tokenizer saved as a generic one means what the file says.
    """
    path = folder / "tokenizer_config.json"
    if path.is_file() and json.loads(path.read_text()).get("tokenizer_class") == "TokenizersBackend":
        return PreTrainedTokenizerFast
    return AutoTokenizer


def read_template(folder: Path) -> PromptTemplate | None:
    """The template saved in a model's folder; None when there is none. Raises INVALID_TEMPLATE."""
    path = folder / PROMPT_FILE_NAME
    if not path.is_file():
        return None
    try:
        return PromptTemplate(**json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"{PROMPT_FILE_NAME} cannot be read: {error}", reason="INVALID_TEMPLATE", file=PROMPT_FILE_NAME
        ) from error


def word_level_codec(
    vocabulary: Iterable[str], *, max_document_tokens: int = 512, template: str = f"{_PLACE} {TLDR_TOKEN}"
) -> TextCodec:
    """A codec that splits at blanks and knows exactly the given words; for text whose marks stand alone."""
    special = (PAD_TOKEN, UNKNOWN_TOKEN, TLDR_TOKEN, EOS_TOKEN)
    words = dict.fromkeys((*special, *vocabulary))
    backend = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN_TOKEN)
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = _wrap(backend, unk_token=UNKNOWN_TOKEN, extra_special_tokens=[TLDR_TOKEN])
    return TextCodec(
        tokenizer,
        PromptTemplate(template=template, max_document_tokens=max_document_tokens, response_prefix=""),
    )


def train_bpe_codec(
    texts: Iterable[str], vocab_size: int, *, template: PromptTemplate | None = None
) -> TextCodec:
    """A codec with a byte-level vocabulary learned from texts; it encodes every text without loss."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 2:
        raise InvalidArgumentError(
            f"a byte-level vocabulary has at least {len(alphabet) + 2} entries",
            reason="INVALID_VOCABULARY",
            vocab_size=vocab_size,
        )
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD_TOKEN, EOS_TOKEN],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return TextCodec(_wrap(backend), template or PromptTemplate())


def _wrap(backend: Tokenizer, **special_tokens: Any) -> PreTrainedTokenizerFast:  # Any: text or lists of it
    extra = special_tokens.get("extra_special_tokens", [])
    backend.add_special_tokens([AddedToken(token, special=True) for token in (PAD_TOKEN, EOS_TOKEN, *extra)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        clean_up_tokenization_spaces=False,
        **special_tokens,
    )


def _without_final(ids: list[int], eos_token_id: int) -> list[int]:
    """Some tokenizers end every text; a prompt is not at its end. A lone token is a beginning, not an end."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == eos_token_id else ids


def _fingerprint(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        serialised = json.loads(backend.to_str())
        for passing in ("truncation", "padding"):  # left behind by earlier calls
            serialised.pop(passing, None)
    else:
        serialised = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    text = json.dumps([serialised, tokenizer.eos_token_id, asdict(template)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
