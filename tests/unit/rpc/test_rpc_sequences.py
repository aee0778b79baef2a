"""What a request may contain. The encoder is a small real one: words to numbers by a fixed table."""

import pytest

from andon.api.common.v1 import sequence_pb2
from andon.errors import InvalidArgumentError
from andon.rpc.sequences import SequenceLimits, check_length, prompt_token_ids, response_token_ids

LIMITS = SequenceLimits(vocab_size=10, max_sequence_tokens=8)
EOS = 9


WORDS = {"a": 1, "b": 2, "c": 3}


class TableEncoder:
    def encode_document(self, text: str) -> list[int]:
        return [0, *(WORDS[word] for word in text.split()[:3])]

    def encode_summary(self, text: str) -> list[int]:
        return [*(WORDS[word] for word in text.split()), EOS]


def prompt(**content) -> list[int]:
    return prompt_token_ids(sequence_pb2.Prompt(**content), encoder=TableEncoder(), limits=LIMITS, field="p")


def response(**content) -> list[int]:
    return response_token_ids(
        sequence_pb2.Response(**content), encoder=TableEncoder(), limits=LIMITS, field="r"
    )


def ids(*values: int) -> sequence_pb2.TokenIds:
    return sequence_pb2.TokenIds(ids=values)


def test_text_is_rendered_as_in_training():
    assert prompt(text="a b c a") == [0, 1, 2, 3]
    assert response(text="c a") == [3, 1, EOS]


def test_token_ids_stay_as_they_are():
    assert prompt(token_ids=ids(0, 9, 4)) == [0, 9, 4]
    assert response(token_ids=ids(4)) == [4]


@pytest.mark.parametrize("content", [{}, {"text": ""}, {"text": " \n\t"}, {"token_ids": ids()}])
def test_empty_content_is_refused(content):
    with pytest.raises(InvalidArgumentError) as raised:
        prompt(**content)
    assert (raised.value.reason, raised.value.metadata) == ("EMPTY_PROMPT", {"field": "p"})
    with pytest.raises(InvalidArgumentError) as raised:
        response(**content)
    assert (raised.value.reason, raised.value.metadata) == ("EMPTY_RESPONSE", {"field": "r"})


@pytest.mark.parametrize("token", [-1, 10, 2**31 - 1, -(2**31)])
def test_ids_outside_the_vocabulary_are_refused_with_their_place(token):
    for read, field in ((prompt, "p[1]"), (response, "r[1]")):
        with pytest.raises(InvalidArgumentError) as raised:
            read(token_ids=ids(3, token))
        assert raised.value.reason == "TOKEN_OUT_OF_VOCABULARY"
        assert raised.value.metadata == {"field": field, "token": str(token), "vocab_size": "10"}


def test_length_is_prompt_and_response_together():
    check_length(prompt_tokens=5, response_tokens=3, limits=LIMITS, field="items[0]")
    with pytest.raises(InvalidArgumentError) as raised:
        check_length(prompt_tokens=6, response_tokens=3, limits=LIMITS, field="items[0]")
    assert raised.value.reason == "SEQUENCE_TOO_LONG"
    assert raised.value.metadata == {
        "field": "items[0]",
        "prompt_tokens": "6",
        "response_tokens": "3",
        "max_sequence_tokens": "8",
    }
