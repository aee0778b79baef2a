"""Decides how the prompts and responses of a request become token ids, and which of them are refused.

The servicers of the policy, the reward and the reference service call it at the edge, before anything is
queued. Pure: the tokenizer comes in as a ``SequenceEncoder``, which ``andon.modeling.text.TextCodec`` is, so
no torch is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from andon.api.common.v1 import sequence_pb2
from andon.errors import InvalidArgumentError


class SequenceEncoder(Protocol):
    """Renders text as the model saw it in training."""

    def encode_document(self, text: str) -> list[int]:
        """The finished prompt for a document, cut to the template's limit."""
        ...

    def encode_summary(self, text: str) -> list[int]:
        """A summary as it stands after the prompt, end of sequence included."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceLimits:
    """What the served model can take."""

    vocab_size: int
    max_sequence_tokens: int
    """Longest prompt and response together, in tokens."""


def prompt_token_ids(
    message: sequence_pb2.Prompt, *, encoder: SequenceEncoder, limits: SequenceLimits, field: str
) -> list[int]:
    """The ids of a prompt. Raises EMPTY_PROMPT, TOKEN_OUT_OF_VOCABULARY; ``field`` says where it stands."""
    kind = message.WhichOneof("content")
    if kind == "text":
        ids = encoder.encode_document(message.text) if message.text.strip() else []
    else:
        ids = list(message.token_ids.ids)
        check_vocabulary(ids, limits=limits, field=field)
    if not ids:
        raise InvalidArgumentError(f"{field} is empty", reason="EMPTY_PROMPT", field=field)
    return ids


def response_token_ids(
    message: sequence_pb2.Response, *, encoder: SequenceEncoder, limits: SequenceLimits, field: str
) -> list[int]:
    """The ids of a response. Raises EMPTY_RESPONSE, TOKEN_OUT_OF_VOCABULARY; ``field`` says where it
    stands.
    """
    kind = message.WhichOneof("content")
    if kind == "text":
        ids = encoder.encode_summary(message.text) if message.text.strip() else []
    else:
        ids = list(message.token_ids.ids)
        check_vocabulary(ids, limits=limits, field=field)
    if not ids:
        raise InvalidArgumentError(f"{field} is empty", reason="EMPTY_RESPONSE", field=field)
    return ids


def check_vocabulary(ids: Sequence[int], *, limits: SequenceLimits, field: str) -> None:
    """Raise TOKEN_OUT_OF_VOCABULARY for the first id outside [0, vocab_size)."""
    if not ids or (min(ids) >= 0 and max(ids) < limits.vocab_size):
        return
    index = next(index for index, token in enumerate(ids) if not 0 <= token < limits.vocab_size)
    raise InvalidArgumentError(
        f"{field}[{index}] is token {ids[index]}, outside of the vocabulary [0, {limits.vocab_size})",
        reason="TOKEN_OUT_OF_VOCABULARY",
        field=f"{field}[{index}]",
        token=ids[index],
        vocab_size=limits.vocab_size,
    )


def check_length(*, prompt_tokens: int, response_tokens: int, limits: SequenceLimits, field: str) -> None:
    """Raise SEQUENCE_TOO_LONG when prompt and response together exceed what the model takes."""
    if prompt_tokens + response_tokens <= limits.max_sequence_tokens:
        return
    raise InvalidArgumentError(
        f"{field} needs {prompt_tokens} tokens of prompt and {response_tokens} of response; "
        f"the model takes {limits.max_sequence_tokens} together",
        reason="SEQUENCE_TOO_LONG",
        field=field,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
        max_sequence_tokens=limits.max_sequence_tokens,
    )
