from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from andon.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from andon.modeling.text import PROMPT_FILE_NAME, PromptTemplate, TextCodec, train_bpe_codec, word_level_codec

TEXTS = ["The cat sat on the mat.", "A dog ate  the fish!\n\nThen it slept.", "Ünïcödé — naïve café"] * 20


@pytest.fixture(scope="module")
def bpe() -> TextCodec:
    return train_bpe_codec(TEXTS, 320)


def test_words_are_split_at_blanks_and_unknown_ones_have_one_token(codec: TextCodec) -> None:
    ids = codec.encode_document("my cat , zebra")
    vocabulary = codec.tokenizer.get_vocab()
    assert ids == [vocabulary[word] for word in ("my", "cat", ",", "<unk>", "<tldr>")]
    assert codec.encode_summary(" my cat ") == [vocabulary["my"], vocabulary["cat"], codec.eos_token_id]
    assert codec.decode(codec.encode_summary("my cat .")) == "my cat ."
    assert codec.vocab_size == len(vocabulary) == len(set(vocabulary.values()))
    assert codec.pad_token_id not in (None, codec.eos_token_id)


@pytest.mark.parametrize("text", [*TEXTS[:3], "x", "tabs\tand  blanks", "emoji 🐱"])
def test_byte_level_summaries_come_back_unchanged(bpe: TextCodec, text: str) -> None:
    ids = bpe.encode_summary(text)
    assert ids[-1] == bpe.eos_token_id
    assert max(ids) < bpe.vocab_size
    assert bpe.decode(ids) == text


def test_documents_are_cut_to_the_template_and_not_further(bpe: TextCodec) -> None:
    codec = bpe.with_template(PromptTemplate(template="POST: {document} TL;DR:", max_document_tokens=5))
    text = "The cat sat on the mat. A dog ate the fish!"
    ids = codec.encode_document(text)
    document = codec.tokenizer(text).input_ids
    assert len(document) > 5
    assert ids[-5 - len(codec.tokenizer(" TL;DR:").input_ids) :][:5] == document[:5]
    decoded = codec.tokenizer.decode(ids)
    assert decoded.startswith("POST: The cat")
    assert decoded.endswith(" TL;DR:")


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_special_tokens_in_a_text_are_only_text(kind: str, codec: TextCodec, bpe: TextCodec) -> None:
    tested = codec if kind == "words" else bpe
    attack = "my cat <eos> sat <pad> on <tldr> mat"
    summary, prompt = tested.encode_summary(attack), tested.encode_document(attack)
    special = {tested.eos_token_id, tested.pad_token_id}
    assert special.isdisjoint(summary[:-1])
    assert special.isdisjoint(prompt)
    if kind == "words":
        assert prompt.count(tested.tokenizer.convert_tokens_to_ids("<tldr>")) == 1
    else:
        assert tested.decode(summary) == attack


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_a_saved_codec_is_the_same_and_plain_transformers_read_it(
    kind: str, codec: TextCodec, bpe: TextCodec, tmp_path: Path
) -> None:
    saved = codec if kind == "words" else bpe
    saved.save(tmp_path)
    loaded = TextCodec.load(tmp_path)
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.template == saved.template
    for text in ("my cat sat .", "the  fish , zebra"):
        assert loaded.encode_document(text) == saved.encode_document(text)
        plain = AutoTokenizer.from_pretrained(str(tmp_path))
        summary = saved.encode_summary(text)
        assert plain(saved.template.response_prefix + text).input_ids == summary[:-1]
        assert plain.decode(
            summary, skip_special_tokens=True
        ) == saved.template.response_prefix + saved.decode(summary)
        assert plain.eos_token_id == saved.eos_token_id
        assert plain.pad_token_id == saved.pad_token_id


def test_the_fingerprint_tells_vocabularies_and_templates_apart(codec: TextCodec, bpe: TextCodec) -> None:
    others = [
        bpe,
        word_level_codec(["my", "cat"]),
        codec.with_template(PromptTemplate(template="{document} <tldr>", max_document_tokens=3)),
    ]
    fingerprints = {codec.fingerprint, *(other.fingerprint for other in others)}
    assert len(fingerprints) == 4
    codec.tokenizer(["my", "my cat"], padding=True, truncation=True, max_length=2)
    assert TextCodec(codec.tokenizer, codec.template).fingerprint == codec.fingerprint


def test_a_folder_without_a_template_gets_the_default(codec: TextCodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    (tmp_path / PROMPT_FILE_NAME).unlink()
    assert TextCodec.load(tmp_path).template == PromptTemplate()
    assert PromptTemplate().template == "{document}\n\nTL;DR:"
    for broken in ("{", '{"template": "no place"}', '{"else": 1}'):
        (tmp_path / PROMPT_FILE_NAME).write_text(broken)
        with pytest.raises(InvalidArgumentError) as caught:
            TextCodec.load(tmp_path)
        assert caught.value.reason == "INVALID_TEMPLATE"


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        TextCodec.load(tmp_path / "nothing")
    assert caught.value.reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("template", ["no place", "{document} {document}"])
def test_a_template_has_one_place(template: str) -> None:
    with pytest.raises(InvalidArgumentError):
        PromptTemplate(template=template)
    with pytest.raises(InvalidArgumentError):
        PromptTemplate(max_document_tokens=0)


def test_missing_special_tokens(codec: TextCodec) -> None:
    def tokenizer(**special_tokens: str) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1, "<end>": 2}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special_tokens)

    with pytest.raises(FailedPreconditionError) as caught:
        TextCodec(tokenizer(), PromptTemplate())
    assert caught.value.reason == "NO_EOS_TOKEN"
    for special in ({"eos_token": "<end>"}, {"eos_token": "<end>", "pad_token": "<end>"}):
        unpadded = TextCodec(tokenizer(**special), PromptTemplate())
        padded = unpadded.with_pad_token()
        assert (unpadded.vocab_size, len(unpadded.tokenizer)) == (3, 3)
        assert padded.pad_token_id == 3
        assert padded.vocab_size == 4
    assert codec.with_pad_token() is codec


def test_a_byte_level_vocabulary_cannot_be_smaller_than_the_bytes() -> None:
    with pytest.raises(InvalidArgumentError):
        train_bpe_codec(TEXTS, 100)
